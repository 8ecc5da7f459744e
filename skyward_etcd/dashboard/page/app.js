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
  const said = JSON.stringify(data);
  if (shown.get(id) === said) return;
  shown.set(id, said);
  document.getElementById(id).replaceChildren(...make(data));
}

const count = (number) => (number === null || number === undefined ? "?" : number.toLocaleString("en"));
const size = (bytes) => {
  if (bytes === null || bytes === undefined) return "?";
  return bytes >= 1e5 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e3).toFixed(1)} kB`;
};
const whom = (who) => `${who.node || "?"}:${who.pid || "?"}`;
const since = (who) => (who.since ? who.since.replace("T", " ").replace("Z", " UTC") : "?");
const nothing = (text) => [node("p", { class: "quiet", text })];

function pair(term, value) {
  return [node("dt", { text: term }), node("dd", { text: value })];
}

function card(title, tag, tone, ...rest) {
  const head = node("header", {}, node("h3", { text: title }), tag ? node("span", { class: `tag ${tone}`, text: tag }) : null);
  return node("article", {}, head, ...rest);
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
        ...pair("etcd", each.grade === "accepted" ? each.version : `${each.version} (${each.grade.replaceAll("_", " ")})`),
        ...pair("data", `${size(each.used_bytes)} in a file of ${size(each.db_bytes)}`),
        ...pair("behind", `${count(each.lag)} entries`),
      );
    }
    const made = card(each.name || each.id, each.role, tone, facts);
    if (each.quota_bytes) {
      const text = `${size(each.db_bytes)} of a quota of ${size(each.quota_bytes)}`;
      made.append(node("meter", {
        min: 0, max: each.quota_bytes, high: each.quota_bytes * 0.8, value: each.db_bytes, "aria-label": text, title: text,
      }, text));
    }
    if (each.errors.length) made.append(node("p", { class: "tag ill", text: each.errors.join("; ") }));
    return made;
  });
}

const SPAN_S = 900;

function chart(name, depths) {
  const most = Math.max(1, ...depths.map(([, waiting]) => waiting));
  const points = depths.map(([ago, waiting]) => [Math.max(0, SPAN_S - ago), 40 - (waiting / most) * 38]);
  if (points.length === 1) points.unshift([points[0][0] - 4, points[0][1]]);
  const along = points.map((point) => point.map((number) => number.toFixed(1)).join(",")).join(" ");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const last = depths.length ? depths[depths.length - 1][1] : 0;
  for (const [key, value] of Object.entries({
    viewBox: `0 0 ${SPAN_S} 41`, preserveAspectRatio: "none", role: "img",
    "aria-label": `items that wait in ${name}: ${last} now, ${Math.max(0, ...depths.map(([, waiting]) => waiting))} at most in 15 minutes`,
  })) svg.setAttribute(key, value);
  if (points.length) {
    for (const [shape, kind, drawn] of [
      ["polygon", "area", `${points[0][0]},40 ${along} ${points[points.length - 1][0]},40`], ["polyline", "line", along],
    ]) {
      const made = document.createElementNS("http://www.w3.org/2000/svg", shape);
      made.setAttribute("class", kind);
      made.setAttribute("points", drawn);
      svg.append(made);
    }
  }
  const top = Math.max(0, ...depths.map(([, waiting]) => waiting));
  return [svg, node("div", { class: "scale", "aria-hidden": "true" },
    node("span", { text: "15 min ago" }), node("span", { text: `most: ${count(top)}` }), node("span", { text: "now" }))];
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
      made.append(node("p", { class: "note", text: "Next:" }), node("ol", {}, ...each.waiters.slice(0, 10).map((other) =>
        node("li", { text: `${whom(other.who)}, since ${since(other.who)}` }))));
      if (each.waiters.length > 10) made.append(node("p", { class: "note", text: `and ${count(each.waiters.length - 10)} more` }));
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
      made.append(node("p", { class: "note", text: "There:" }), node("ul", {}, ...each.waiting.slice(0, 20).map((who) => node("li", { text: whom(who) }))));
      made.append(node("p", { class: "note", text: `${count(each.missing)} missing. Processes that do not wait here:` }));
      made.append(each.absent.length
        ? node("ul", {}, ...each.absent.slice(0, 20).map((who) => node("li", { text: whom(who) })))
        : node("p", { text: "none: who is missing has no session" }));
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
    [[each.kind], [each.name], [count(each.entries), "number"], [(each.is_exact ? "" : "about ") + size(each.bytes), "number"]]));
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
