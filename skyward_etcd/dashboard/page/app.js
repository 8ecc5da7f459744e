// Asks for the last look and shows it. Everything is put in as text: a collection may be called anything.
"use strict";

const shown = new Map(); // what each part shows now: one that has not changed is left alone, with its focus and selection

function node(name, options, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options || {})) {
    if (key === "text") made.textContent = value; else made.setAttribute(key, value);
  }
  made.append(...children.filter((each) => each !== null));
  return made;
}

function show(id, data, make) {
  const said = JSON.stringify([today(), data]);
  if (shown.get(id) === said) return;
  shown.set(id, said);
  document.getElementById(id).replaceChildren(...make(data));
}

const count = (number) => (number === null || number === undefined ? "?" : number.toLocaleString("en"));
const size = (bytes) => {
  if (bytes === null || bytes === undefined) return "?";
  const [unit, name] = bytes >= 1e9 ? [1e9, "GB"] : bytes >= 1e5 ? [1e6, "MB"] : [1e3, "kB"];
  return `${(bytes / unit).toFixed(1)}\u00a0${name}`;
};
const whom = (who) => `${who.node || "?"}:${who.pid || "?"}`;
const today = () => new Date().toISOString().slice(0, 10);
const since = (who) => (who.since ? who.since.replace(`${today()}T`, "").replace("T", " ").replace("Z", " UTC") : "?");
const nothing = (text) => [node("p", { class: "quiet", text })];

function pair(term, value) {
  return [node("dt", { text: term }), node("dd", { text: value })];
}

function card(title, tag, tone, ...rest) {
  const head = node("header", {}, node("h3", { text: title }), tag ? node("span", { class: `tag ${tone}`, text: tag }) : null);
  return node("article", {}, head, ...rest);
}

function listed(name, all, most, text) {
  const list = node(name, {}, ...all.slice(0, most).map((each) => node("li", { text: text(each) })));
  return all.length > most ? [list, node("p", { class: "note", text: `and ${count(all.length - most)} more` })] : [list];
}

function figures(...pairs) {
  return node("dl", { class: "figures" }, ...pairs.map(([term, value]) => node("div", {}, ...pair(term, value))));
}

function members(all) {
  if (!all.length) return nothing("nobody answers");
  return all.map((each) => {
    const tone = { leader: "well", follower: "", learner: "waiting" }[each.role] ?? "ill";
    const facts = node("dl", {}, ...pair("at", each.endpoints.join(", ") || "?"));
    if (each.answers) {
      facts.append(
        ...pair("etcd", each.grade === "accepted" ? each.version : `${each.version} (if durable: ${each.grade})`),
        ...pair("data", `${size(each.used_bytes)} in a file of ${size(each.db_bytes)}`),
        ...pair("behind", `${count(each.lag)} entries`),
      );
    }
    const made = card(each.name || each.id, each.role, tone, facts);
    if (each.quota_bytes) {
      facts.append(...pair("quota", `${(100 * each.db_bytes / each.quota_bytes).toFixed(1)}% of ${size(each.quota_bytes)}`));
      made.append(node("meter", {
        min: 0, max: each.quota_bytes, high: each.quota_bytes * 0.8, value: each.db_bytes, "aria-label": "file, of its quota",
      }));
    }
    if (each.errors.length) made.append(node("p", { class: "tag ill", text: each.errors.join("; ") }));
    return made;
  });
}

const HIGH = 40; // and as wide as there are seconds; the page stretches both

function drawing(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// How many waited, since the first look.
function chart(name, depths) {
  if (!depths.length) return [];
  const span = Math.max(60, depths[0][0]);
  const long = span < 120 ? `${span} s` : `${Math.round(span / 60)} min`;
  const most = Math.max(...depths.map(([, waiting]) => waiting));
  const last = depths[depths.length - 1][1];
  const points = [...depths, [0, last]].map(([ago, waiting]) => [span - ago, HIGH - (waiting / Math.max(1, most)) * (HIGH - 2)]);
  const along = points.map(([x, y]) => `${x},${y.toFixed(1)}`).join(" ");
  return [
    drawing("svg", {
      viewBox: `0 0 ${span} ${HIGH + 1}`, preserveAspectRatio: "none", role: "img",
      "aria-label": `items that wait in ${name}: ${last} now, ${most} at most in ${long}`,
    },
    drawing("line", { class: "ground", x1: 0, y1: HIGH, x2: span, y2: HIGH }),
    drawing("polygon", { class: "area", points: `${points[0][0]},${HIGH} ${along} ${span},${HIGH}` }),
    drawing("polyline", { class: "line", points: along })),
    node("div", { class: "scale", "aria-hidden": "true" },
      node("span", { text: `${long} ago` }), node("span", { text: `most: ${count(most)}` }), node("span", { text: "now" })),
  ];
}

function queues(all) {
  if (!all.length) return nothing("none");
  return all.map((each) => card(
    each.name, each.dead ? `${count(each.dead)} dead` : "", "ill",
    figures(["waiting", count(each.waiting)], ["claimed", count(each.claimed)], ["dead", count(each.dead)]),
    ...chart(each.name, each.depths || []),
  ));
}

function locks(all) {
  if (!all.length) return nothing("none");
  return all.map((each) => {
    if (!each.holder) return card(each.name, "free", "", node("p", { class: "note", text: "Nobody holds it." }));
    const held = each.holder;
    const made = card(each.name, each.waiters.length ? `held, ${count(each.waiters.length)} wait` : "held", each.waiters.length ? "waiting" : "well",
      node("dl", {}, ...pair("holder", whom(held.who)), ...pair("in line since", since(held.who)),
        ...pair("token", String(held.token)), ...pair("lease", each.lease_s === null ? "?" : `${each.lease_s} s left`)));
    if (each.waiters.length) {
      made.append(node("p", { class: "note", text: "Next:" }),
        ...listed("ol", each.waiters, 10, (other) => `${whom(other.who)}, since ${since(other.who)}`));
    }
    return made;
  });
}

function barriers(all) {
  if (!all.length) return nothing("none");
  return all.map((each) => {
    const there = each.waiting.length;
    const tone = there ? "waiting" : "";
    const made = card(each.name, there ? `${count(there)} of ${count(each.n)}` : `for ${count(each.n)}`, tone,
      node("meter", { min: 0, max: each.n, value: there, "aria-label": `${there} of ${each.n} have arrived` }));
    if (there) {
      made.append(node("p", { class: "note", text: "There:" }), ...listed("ul", each.waiting, 20, whom));
      made.append(node("p", { class: "note", text: `${count(each.missing)} missing. Processes that do not wait here:` }));
      made.append(...(each.absent.length
        ? listed("ul", each.absent, 20, whom)
        : [node("p", { text: "none: who is missing has no session" })]));
    } else made.append(node("p", { class: "note", text: "Nobody waits." }));
    if (each.broken.length) made.append(node("p", { class: "note", text: `broke in generation ${each.broken.join(", ")}` }));
    return made;
  });
}

function rows(all, cells) {
  if (!all.length) return [node("tr", {}, node("td", { colspan: 4, class: "quiet", text: "none" }))];
  return all.map((each) => node("tr", {}, ...cells(each).map(([text, kind]) => node("td", { class: kind || "", text }))));
}

function health(state) {
  const alarms = (state.members || []).flatMap((each) => each.errors);
  const down = (state.members || []).filter((each) => !each.answers).length;
  if (state.error) return ["ill", state.error];
  if (state.age_s === null) return ["waiting", "looking…"];
  if (!state.has_leader) return ["ill", "no leader: what one member has is shown"];
  if (alarms.length) return ["ill", alarms[0]];
  if (down) return ["ill", `${down} of ${state.members.length} members do not answer`];
  if (state.age_s > 5 * state.every_s + 5) return ["waiting", "the last look is old"];
  return ["well", "all is well"];
}

function tell(tone, text) {
  const place = document.getElementById("health");
  if (place.textContent !== text) place.textContent = text; // a screen reader says it when it changes
  place.className = tone;
}

function draw(state) {
  tell(...health(state));
  document.getElementById("namespace").textContent = `/ ${state.namespace}`;
  document.title = `${state.namespace} – skyward-etcd`;
  show("facts", [state.revision, state.writes_per_s, Math.round(state.age_s)], ([revision, rate, age]) =>
    [["revision", count(revision)], ["writes/s", count(rate)], ["seen", state.age_s === null ? "never" : `${age} s ago`]]
      .map(([term, value]) => node("div", {}, ...pair(term, value))));
  show("members", state.members || [], members);
  if (state.age_s === null) return;
  show("queues", state.queues, queues);
  show("locks", state.locks, locks);
  show("barriers", state.barriers, barriers);
  show("collections", state.collections, (all) => rows(all, (each) =>
    [[each.kind, "kind"], [each.name, "name"], [count(each.entries), "number"], [(each.is_exact ? "" : "≈\u00a0") + size(each.bytes), "number"]]));
  show("processes", state.processes, (all) => rows(all, (who) =>
    [[who.node || "?"], [String(who.pid || "?"), "number"], [since(who)], [who.session]]));
  for (const kind of ["queue", "lock", "barrier"]) {
    const more = state.left_out[kind];
    document.getElementById(`h-${kind}s`).textContent =
      kind[0].toUpperCase() + kind.slice(1) + "s" + (more ? ` (${count(more)} with fewer entries left out)` : "");
  }
}

async function again() {
  let every = 2;
  try {
    const answer = await fetch("state.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const state = await answer.json();
    every = state.every_s;
    draw(state);
  } catch (error) {
    tell("ill", `this page is not up to date: ${error.message}`);
  }
  setTimeout(again, every * 1000);
}

again();
