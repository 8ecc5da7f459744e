"""Workers as tasks: every operation has an ``_async`` twin that does not block the event loop."""

from __future__ import annotations

import asyncio

import skyward_etcd as sky

URLS = [f"https://example.org/{number}" for number in range(60)]


@sky.function
async def fetch_all(tasks: int) -> int:
    """Fetch with so many tasks at once, and return how many pages this node got."""
    urls, pages = sky.queue("urls"), sky.dict("pages")

    async def worker() -> int:
        fetched = 0
        while (url := await urls.get_async(timeout=0)) is not None:
            await asyncio.sleep(0.01)  # as if it came from the network
            await pages.set_async(url, f"the page at {url}")
            fetched += 1
        return fetched

    return sum(await asyncio.gather(*(worker() for _ in range(tasks))))


async def main() -> None:
    """Put the addresses, and fetch on both nodes without waiting for either."""
    async with sky.Compute(nodes=2) as pool:
        await sky.queue("urls").put_many_async(URLS)
        running = [asyncio.wrap_future(fetch_all(tasks=8) > pool) for _ in range(2)]
        fetched = await asyncio.gather(*running)
        print(f"{fetched[0]} and {fetched[1]} pages were fetched by 8 tasks a node")
        assert await sky.dict("pages").size_async() == sum(fetched) == len(URLS)


if __name__ == "__main__":
    asyncio.run(main())
