// The grading page: a list of candidates, one of them current, as a mosaic or alone.

import { Queue, ask, lastOf, newName } from "./grades.js";
import * as draw from "./draw.js";
import { listen } from "./hands.js";

const PAGE = 60;
const SCREENFUL = 24;
const $ = (id) => document.getElementById(id);
const form = $("controls").elements;
const SIDES = [0, 10, 20]; // of stamps, arcsec; 0 is the thumbnail
const LIST = ["sort", "seed", "show", "top", "signal", "text"];

const page = {
  size: PAGE, session: null, grader: "", queue: null, undo: [],
  list: {}, at: null, total: 0, graded: 0, counts: {}, start: 0, rows: [],
  index: 0, loading: false, drawing: null, alone: false, stretch: 1, look: 0, side: 0, pictures: "four", reveal: false,
};

start();

async function start() {
  forgetToken();
  page.session = await ask("api/session");
  $("run").textContent = page.session.run;
  nameBands();
  document.title = `vet ${page.session.run.split("/").at(-1)}`;
  readAddress();
  await knowGrader();
  listen(page, { go, grade, undo, load, setAlone, keepComment, setStretch, nextLook, nextSide, showPage, showCurrent, showSummary, knowGrader });
  $("choose").open = matchMedia("(min-width: 701px)").matches;
  await load(page.index, { keepAt: true });
}

/** Say in the controls which endpoints and which band they mean. */
function nameBands() {
  const { ends: [other, objects], band } = page.session;
  const words = {
    "sort brightest": `brightest in ${band} first`, "sort faintest": `faintest in ${band} first`,
    "pictures two": `${other.title} and ${objects.title}`, "pictures one": objects.title,
  };
  for (const [where, text] of Object.entries(words)) {
    const [name, value] = where.split(" ");
    form[name].querySelector(`option[value=${value}]`).textContent = text;
  }
  $("signal-in").textContent = `S/N in ${band}`;
}

/** The token is in a cookie by now; it need not stay in the address. */
function forgetToken() {
  const address = new URL(location.href);
  if (address.searchParams.has("token")) {
    address.searchParams.delete("token");
    history.replaceState(null, "", address);
  }
}

// -- who grades --

async function knowGrader(again = false) {
  const kept = "surveybridge-vet grader";
  if (!again) page.grader = page.session.grader ?? stored(kept);
  $("who").disabled = page.session.grader !== null;
  while (again || !page.grader) {
    again = false;
    $("name").value = page.grader;
    $("asked").showModal();
    await new Promise((resolve) => $("asked").addEventListener("close", resolve, { once: true }));
    page.grader = $("name").value.trim() || page.grader;
  }
  if (page.session.grader === null) store(kept, page.grader);
  $("who").textContent = page.grader;
  page.undo = JSON.parse(sessionStorage.getItem(`undo ${page.session.key} ${page.grader}`) || "[]");
  page.queue = new Queue(JSON.stringify([page.session.key, page.grader]), { saved, refused, changed: showState });
}

function stored(name) { try { return localStorage.getItem(name) || ""; } catch { return ""; } }
function store(name, value) { try { localStorage.setItem(name, value); } catch { /* then it is asked again */ } }

// -- the list --

/** Read the page of the list that holds `index`, and show it. */
async function load(index, { keepAt = false } = {}) {
  const query = new URLSearchParams({ grader: page.grader, limit: PAGE });
  for (const name of LIST) if (page.list[name]) query.set(name, page.list[name]);
  if (keepAt && page.at) query.set("at", page.at);
  if (page.reveal) query.set("reveal", "true");
  const begin = Math.floor(index / PAGE) * PAGE;
  query.set("offset", begin);
  const unsaved = [...page.queue.entries.values()]; // they may be saved after the server read the grades for its answer
  let found;
  page.loading = true;
  try {
    found = await ask(`api/candidates?${query}`);
  } catch (error) {
    return say(`${error.message}: this part of the list cannot be read now`, true);
  } finally {
    page.loading = false;
  }
  if (found.total && begin >= found.total) return load(found.total - 1, { keepAt: true });
  Object.assign(page, { at: found.at, total: found.total, graded: found.graded, counts: found.counts, start: begin, rows: found.rows });
  page.index = Math.max(0, Math.min(index, page.total - 1));
  for (const row of page.rows) {
    const pending = lastOf(row.object_id, [...unsaved, ...page.queue.entries.values()]);
    if (pending) {
      count(row.mine?.grade ?? null, pending.grade);
      row.mine = { ...row.mine, grade: pending.grade, comment: pending.comment };
    }
  }
  showPage();
  if (page.total > begin + PAGE) { // its pictures are read meanwhile
    query.set("offset", begin + PAGE);
    query.set("at", page.at);
    setTimeout(() => ask(`api/candidates?${query}`).catch(() => {}), 1000);
  }
}

const current = () => page.rows[page.index - page.start];

async function go(index) {
  if (!page.total || page.loading) return;
  index = Math.max(0, Math.min(index, page.total - 1));
  if (index < page.start || index >= page.start + page.rows.length) {
    await load(index, { keepAt: true });
  } else {
    page.index = index;
    showCurrent();
  }
}

// -- grading --

function grade(value) {
  const row = current();
  if (page.loading) return say("still loading: not taken", true); // nobody has seen what comes next
  if (!row) return;
  const typed = page.alone ? $("comment").value.trim() : row.mine?.comment ?? "";
  record(row, value, typed);
  say(`${row.object_id}: ${value}`);
  if (page.index + 1 < page.total) go(page.index + 1); else showCurrent();
}

function record(row, value, comment, undoing = false) {
  const before = { grade: row.mine?.grade ?? null, comment: row.mine?.comment ?? "" };
  if (!undoing) {
    page.undo.push({ object_id: row.object_id, index: page.index, at: page.at, ...before });
    keepUndo();
  }
  count(before.grade, value);
  row.mine = { ...row.mine, grade: value, comment };
  page.queue.add({ entry: newName(), object_id: row.object_id, grader: page.grader, grade: value, comment, made: Date.now() });
  const made = $("mosaic").querySelector(`[data-index="${page.start + page.rows.indexOf(row)}"]`);
  if (made) draw.mark(made, row, page);
}

function count(before, after) {
  page.graded += (after !== null) - (before !== null);
  if (before) page.counts[before] -= 1;
  if (after) page.counts[after] = (page.counts[after] ?? 0) + 1;
}

async function undo() {
  if (page.loading) return say("still loading: not taken", true);
  const last = page.undo.pop();
  keepUndo();
  if (!last) return say("nothing to take back");
  if (last.at === page.at) await go(last.index);
  const row = page.rows.find((one) => one.object_id === last.object_id);
  if (row) {
    page.index = page.start + page.rows.indexOf(row);
    record(row, last.grade, last.comment, true);
    showCurrent();
  } else { // graded in another list
    page.queue.add({ entry: newName(), object_id: last.object_id, grader: page.grader, grade: last.grade, comment: last.comment, made: Date.now() });
  }
  say(`${last.object_id}: taken back${last.grade ? `, ${last.grade} again` : ""}`);
}

function keepUndo() {
  page.undo = page.undo.slice(-200);
  try { sessionStorage.setItem(`undo ${page.session.key} ${page.grader}`, JSON.stringify(page.undo)); } catch { /* this page knows it */ }
}

function saved(entry, answer) {
  if (!page.queue.entries.size) page.counts = answer.counts;
  showState();
}

function refused(entry, reason) {
  say(`${entry.object_id}: not kept, ${reason}`, true);
  load(page.index, { keepAt: true });
}

function setAlone(alone) {
  page.alone = alone;
  showCurrent();
}

function keepComment() {
  const row = current();
  const typed = $("comment").value.trim();
  if (row?.object_id === $("comment").dataset.object && typed !== (row.mine?.comment ?? "")) {
    record(row, row.mine?.grade ?? null, typed);
    $("comment").defaultValue = typed; // what Escape goes back to
  }
}

// -- what is seen --

function showPage() {
  const mosaic = $("mosaic");
  const drawing = page.drawing = {};
  const cards = (from, to) => page.rows.slice(from, to).map((row, k) => draw.card(row, page.start + from + k, page));
  const first = page.index - page.start < SCREENFUL ? SCREENFUL : PAGE;
  mosaic.className = page.pictures;
  mosaic.replaceChildren(...cards(0, first));
  mosaic.setAttribute("aria-busy", true);
  setTimeout(() => { // the rest, once the screen is drawn
    if (drawing !== page.drawing) return; // another page by now
    mosaic.append(...cards(first, PAGE));
    mosaic.setAttribute("aria-busy", false);
    if (page.index - page.start >= first) showCurrent();
  });
  $("empty").hidden = page.total > 0;
  $("listed").textContent = `${page.total} candidates`;
  showCurrent();
}

function showCurrent() {
  const row = current();
  $("mosaic").hidden = page.alone;
  $("single").hidden = !page.alone || !row;
  $("mode").textContent = page.alone ? "Mosaic" : "Open";
  for (const made of $("mosaic").children) {
    const here = Number(made.dataset.index) === page.index;
    made.tabIndex = here ? 0 : -1;
    made.setAttribute("aria-current", here);
    if (here && !page.alone && !busyElsewhere()) made.focus({ preventScroll: true });
    if (here && !page.alone) made.scrollIntoView({ block: "nearest" });
  }
  if (page.alone && row) {
    const comment = draw.element("textarea", { id: "comment", maxLength: 2000, defaultValue: row.mine?.comment ?? "" });
    comment.dataset.object = row.object_id;
    $("single").replaceChildren(...draw.single(row, page, comment));
    showSize(row);
    if (!busyElsewhere()) $("single").focus({ preventScroll: true });
    if (document.documentElement.scrollHeight > innerHeight) $("single").scrollIntoView(); // a phone: pictures first
    for (const next of page.rows.slice(page.index - page.start + 1, page.index - page.start + 4)) new Image().src = draw.pictureUrl(next, page, page.side);
  }
  showState();
  writeAddress();
}

/** Somebody who types, or reads a dialog, keeps the focus. */
function busyElsewhere() {
  return document.querySelector("dialog[open]") !== null || $("choose").contains(document.activeElement);
}

function showState() {
  const { A = 0, B = 0, C = 0, X = 0 } = page.counts;
  $("progress").max = page.total || 1;
  $("progress").value = page.graded;
  $("counts").textContent = `${page.graded} of ${page.total} in this list · all my grades: A ${A} B ${B} C ${C} X ${X}`;
  $("look").textContent = page.look ? page.session.looks[page.look].name : "Colour";
  $("look").hidden = page.session.looks.length < 2;
  $("wide").textContent = page.side ? `${page.side}″` : "Stamp";
  $("position").textContent = page.total ? `${page.index + 1} of ${page.total}` : "";
  const left = page.queue?.entries.size ?? 0;
  $("saved").classList.toggle("waiting", left > 0 && page.queue.trouble !== "");
  $("saved").textContent = left === 0 ? "saved"
    : page.queue.trouble ? `${page.queue.trouble}: ${left} kept in this browser, trying again` : `saving ${left}`;
}

let sayTimer = 0;
function say(text, seen = false) {
  $("live").textContent = text;
  $("live").classList.toggle("unseen", !seen);
  clearTimeout(sayTimer);
  if (seen) sayTimer = setTimeout(() => $("live").classList.add("unseen"), 6000);
}

function setStretch(step) {
  const input = $("stretch");
  input.value = step;
  page.stretch = Number((2 ** Number(input.value)).toPrecision(3));
  for (const image of document.querySelectorAll(".crop img")) {
    const address = new URL(image.src);
    address.searchParams.set("stretch", page.stretch);
    image.src = address;
  }
  writeAddress();
}

/** In colour, then band by band. */
function nextLook() {
  page.look = (page.look + 1) % page.session.looks.length;
  for (const image of document.querySelectorAll("#mosaic .crop img")) {
    const address = new URL(image.src);
    if (page.look) address.searchParams.set("channel", page.look - 1); else address.searchParams.delete("channel");
    image.src = address;
  }
  if (page.alone) showCurrent();
  showState();
  writeAddress();
  say(page.session.looks[page.look].name);
}

/** The thumbnail, then more of the sky around it, which is shown of one candidate alone. */
function nextSide() {
  page.side = SIDES[(SIDES.indexOf(page.side) + 1) % SIDES.length];
  setAlone(true);
}

/** Say how large the stamps of a candidate are, and lay it over them. */
async function showSize(row) {
  const side = page.side;
  let stamp = row.stamp;
  if (side) {
    $("size").textContent = "reading the sky around it";
    try {
      stamp = await ask(`api/surroundings?${new URLSearchParams({ object: row.object_id, side })}`);
    } catch (error) {
      stamp = { missing: `the sky around it cannot be shown: ${error.message}` };
    }
    if (current() !== row || !page.alone || page.side !== side) return; // another one by now
  }
  for (const [k, made] of $("single").querySelectorAll(".crop").entries()) {
    draw.lay(made, stamp);
    if (k < 2) draw.point(made, row, stamp); // on the surveys' images
  }
  $("size").textContent = [stamp?.said ?? (side ? "" : "the place of this stamp on the sky is not known"), stamp?.missing]
    .filter(Boolean).join(" · ");
}

async function showSummary() {
  const found = await ask(`api/summary?${new URLSearchParams({ grader: page.grader })}`);
  $("summary-body").replaceChildren(...draw.summary(found));
  if (!$("summary").open) $("summary").showModal();
}

// -- the address holds what is shown, so that a reload changes nothing --

function writeAddress() {
  const kept = new URLSearchParams();
  for (const name of LIST) if (page.list[name]) kept.set(name, page.list[name]);
  for (const name of ["at", "index", "pictures", "stretch"]) if (page[name] !== null) kept.set(name, page[name]);
  for (const name of ["look", "side"]) if (page[name]) kept.set(name, page[name]);
  if (page.alone) kept.set("alone", 1);
  if (page.reveal) kept.set("reveal", 1);
  history.replaceState(null, "", `#${kept}`);
}

function readAddress() {
  const kept = new URLSearchParams(location.hash.slice(1));
  for (const name of LIST) {
    page.list[name] = kept.get(name) ?? "";
    if (kept.has(name)) form[name].value = kept.get(name);
  }
  page.at = kept.get("at");
  page.index = Number(kept.get("index")) || 0;
  page.alone = kept.has("alone");
  page.look = page.session.looks[kept.get("look")] ? Number(kept.get("look")) : 0;
  page.side = SIDES.includes(Number(kept.get("side"))) ? Number(kept.get("side")) : 0;
  page.reveal = form.reveal.checked = kept.has("reveal");
  page.pictures = form.pictures.value = ["one", "two"].includes(kept.get("pictures")) ? kept.get("pictures") : "four";
  $("stretch").value = Math.log2(Number(kept.get("stretch")) || 1);
  page.stretch = Number((2 ** Number($("stretch").value)).toPrecision(3));
}
