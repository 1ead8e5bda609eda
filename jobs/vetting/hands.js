// Keys, clicks and controls: which of the page's acts each one is.

const $ = (id) => document.getElementById(id);
const form = $("controls").elements;
let page, act;

/** Listen to the user: `shown` is the state of the page, `acts` what can be done with it. */
export function listen(shown, acts) {
  [page, act] = [shown, acts];
  document.addEventListener("keydown", onKey);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").addEventListener("change", onControl);
  $("renew").addEventListener("click", () => act.load(0));
  $("mosaic").addEventListener("click", onCard);
  $("grades").addEventListener("click", (event) => event.target.dataset.grade && act.grade(event.target.dataset.grade));
  $("undo").addEventListener("click", act.undo);
  $("previous").addEventListener("click", () => act.go(page.index - 1));
  $("next").addEventListener("click", () => act.go(page.index + 1));
  $("mode").addEventListener("click", () => act.setAlone(!page.alone));
  $("look").addEventListener("click", act.nextLook);
  $("wide").addEventListener("click", act.nextSide);
  $("stretch").addEventListener("input", (event) => act.setStretch(event.target.value));
  $("open-summary").addEventListener("click", act.showSummary);
  $("open-help").addEventListener("click", () => $("help").showModal());
  $("who").addEventListener("click", async () => { await act.knowGrader(true); act.load(page.index); });
  $("single").addEventListener("change", (event) => event.target.id === "comment" && act.keepComment());
}

function onControl(event) {
  const { name, value } = event.target;
  if (name === "pictures") {
    page.pictures = value;
    act.showPage();
  } else if (name === "reveal") {
    page.reveal = form.reveal.checked;
    act.load(page.index, { keepAt: true });
  } else if (!event.target.validity.valid) {
    event.target.reportValidity();
  } else {
    page.list[name] = value;
    act.load(0);
  }
}

/** A click chooses a candidate, another one opens it. */
function onCard(event) {
  const made = event.target.closest(".card");
  if (!made) return;
  const index = Number(made.dataset.index);
  if (index === page.index && made.dataset.touched) return act.setAlone(true);
  for (const other of $("mosaic").children) delete other.dataset.touched;
  made.dataset.touched = true;
  act.go(index);
}

function onKey(event) {
  if (event.target.id === "comment") return onCommentKey(event);
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input, select, textarea") && event.target.id !== "stretch") return onControlKey(event);
  if (event.target.id === "stretch" && event.key.startsWith("Arrow")) return;
  if (event.key === "Enter" && event.target.closest("button, summary, a")) return;
  const stretch = Number($("stretch").value);
  const meant = {
    a: () => act.grade("A"), b: () => act.grade("B"), c: () => act.grade("C"), x: () => act.grade("X"), u: act.undo,
    arrowright: () => act.go(page.index + 1), arrowleft: () => act.go(page.index - 1),
    arrowdown: () => act.go(page.index + columns()), arrowup: () => act.go(page.index - columns()),
    pagedown: () => act.go(page.start + page.size), pageup: () => act.go(page.start - page.size),
    home: () => act.go(0), end: () => act.go(page.total - 1),
    enter: () => act.setAlone(true), escape: () => act.setAlone(false),
    m: () => { act.setAlone(true); $("comment")?.focus(); },
    "+": () => act.setStretch(stretch + 0.5), "=": () => act.setStretch(stretch + 0.5),
    "-": () => act.setStretch(stretch - 0.5),
    v: act.nextLook, w: act.nextSide,
    o: () => form.reveal.click(), r: () => act.load(0), s: act.showSummary,
    "/": () => { $("choose").open = true; form.text.focus(); },
    "?": () => $("help").showModal(),
  }[event.key.toLowerCase()];
  if (meant) {
    event.preventDefault();
    meant();
  }
}

function columns() {
  return page.alone ? 1 : getComputedStyle($("mosaic")).gridTemplateColumns.split(" ").length;
}

function onControlKey(event) {
  const typed = event.key === "Enter" && event.target.tagName === "INPUT";
  if (typed || event.key === "Escape") { // back to the list; a search field would clear itself
    event.preventDefault();
    event.target.blur(); // and so `change`, if there is one
    act.showCurrent();
  }
}

function onCommentKey(event) {
  if (event.key === "Escape") event.target.value = event.target.defaultValue;
  if (event.key === "Escape" || (event.key === "Enter" && !event.shiftKey)) {
    event.preventDefault();
    event.target.blur(); // and so `change`, which keeps it
    $("single").focus({ preventScroll: true });
  }
}
