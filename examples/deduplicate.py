"""Each thing once: of all who add the same member to a set, exactly one is told that it is new."""

from __future__ import annotations

import skyward_etcd as sky

PAGES = [f"https://example.org/{number}" for number in range(60)]


@sky.function
def crawl(pages: list[str]) -> list[str]:
    """Return the pages that nobody else has taken."""
    seen = sky.set("seen")
    return [page for page in pages if seen.add(page)]


def main() -> None:
    """Give every node all pages."""
    with sky.Compute(nodes=3) as pool:
        crawled = crawl(PAGES) @ pool
        for node, pages in enumerate(crawled):
            print(f"node {node} crawled {len(pages)} pages")
        assert sorted(page for pages in crawled for page in pages) == sorted(PAGES)
        print(f"together {len(sky.set('seen'))}, each once")


if __name__ == "__main__":
    main()
