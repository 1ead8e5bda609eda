// From rows to elements. Text goes in as text, never as HTML.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Address of a candidate's strip as the page shows it; `side` is that of its surroundings, 0 for the thumbnails. */
export function pictureUrl(row, page, side = 0) {
  const query = new URLSearchParams({ object: row.object_id, stretch: page.stretch, v: page.session.started });
  if (page.look) query.set("channel", page.look - 1);
  if (side) query.set("side", side);
  return `api/picture?${query}`;
}

/** One of the views that a strip has side by side. */
function crop(row, view, page, side = 0) {
  const views = page.session.looks[page.look][side ? "wide" : "views"];
  const image = element("img", {
    className: `v${Object.keys(views).indexOf(view)}`, alt: `${views[view]} of ${row.object_id}`, loading: "lazy", decoding: "async", draggable: false,
  });
  image.addEventListener("error", () => image.classList.add("failed"));
  image.addEventListener("load", () => image.classList.remove("failed"));
  image.src = pictureUrl(row, page, side);
  const made = element("span", { className: "crop" }, image);
  made.dataset.side = side;
  return made;
}

/** Lay scale and directions over a stamp, or over none of a candidate whose place on the sky is not known. */
export function lay(made, stamp, text = 7) {
  made.querySelector(".over")?.remove();
  if (!stamp?.overlay) return;
  const over = element("span", { className: "over", role: "img" });
  over.setAttribute("aria-label", stamp.said);
  over.style.backgroundImage = `url("${stamp.overlay}&text=${text}")`;
  made.append(over);
}

/** Mark the objects of a system, numbered as they are listed. */
export function point(made, row, stamp) {
  for (const old of made.querySelectorAll(".member")) old.remove();
  const pixels = stamp?.pixels;
  if (!pixels) return;
  for (const [k, member] of row.members.entries()) {
    const [x, y] = [member.dx, member.dy].map((offset) => (Math.floor(pixels / 2) + 0.5 + offset) / pixels);
    if (x < 0 || x > 1 || y < 0 || y > 1) continue;
    const mark = element("span", { className: "member", title: member.object_id }, `${k + 1}`);
    mark.style.left = `${100 * x}%`;
    mark.style.bottom = `${100 * y}%`;
    made.append(mark);
  }
}

/** Which views a card shows: the endpoints, the one with the objects last, and what the model made. */
function mosaicViews(page) {
  const ends = page.session.ends.map((end) => end.name);
  return { four: [...ends, "mean", "residual"], two: ends, one: ends.slice(1) }[page.pictures];
}

export function card(row, index, page) {
  const made = element("article", { className: "card", tabIndex: -1, role: "listitem" },
    element("div", { className: "pictures" }, ...mosaicViews(page).map((view) => crop(row, view, page))),
    element("div", { className: "line" },
      element("span", {}, `${row.rank}`),
      element("span", { className: "name", title: row.object_id }, row.object_id),
      element("span", { title: "score" }, number(row.score, 3))));
  if (row.members.length) made.querySelector(".name").append(` · ${row.members.length} objects`);
  made.dataset.index = index;
  lay(made.querySelector(".crop"), row.stamp, 13);
  mark(made, row, page);
  return made;
}

/** Show on a card what is thought of it. */
export function mark(made, row, page) {
  made.querySelector(".badge")?.remove();
  const grade = row.mine?.grade ?? null;
  const others = page.reveal && row.others?.length ? ` (${row.others.map((other) => other.grade).join("")})` : "";
  const said = `${grade ?? ""}${row.mine?.comment ? " ✎" : ""}${others}`;
  if (said) made.prepend(element("span", { className: `badge ${grade ?? ""}` }, said));
  made.classList.toggle("graded", grade !== null);
  made.setAttribute("aria-label", `rank ${row.rank}, ${row.object_id}, ${grade ? `graded ${grade}` : "not graded"}`);
}

export function single(row, page, comment) {
  const grade = row.mine?.grade;
  const generated = new Set(["mean", "residual", "error", "translated", "std"]);
  const views = Object.entries(page.session.looks[page.look][page.side ? "wide" : "views"]).map(([view, heading]) =>
    element("figure", {},
      element("figcaption", generated.has(view)
        ? { className: "generated", title: "model-generated, wholly or in part" } : {}, heading),
      crop(row, view, page, page.side)));
  const facts = {
    rank: row.rank, score: `${number(row.score, 4)}${row.score_std === null ? "" : ` ± ${number(row.score_std, 2)}`}`,
    "RA, Dec": `${row.ra.toFixed(6)} ${row.dec >= 0 ? "+" : ""}${row.dec.toFixed(6)}`, "false alarm": number(row.false_alarm, 3),
    "AS-Bridge score": number(row.score_asbridge, 3),
    ...Object.fromEntries(page.session.ends.map((end) =>
      [end.bands.join(" "), end.fluxes.map((name) => brightness(row[name], end)).join(" ")])),
    [`S/N in ${page.session.band}`]: number(row[page.session.signal], 3), flags: row.flags_said, tile: row.tile_id, model: row.model_id ?? "-",
  };
  const words = element("div", { className: "words" },
    element("label", { htmlFor: "comment" }, "Comment (M)"), comment);
  if (row.members.length) {
    words.append(element("p", { className: "system" }, `system of ${row.members.length}; the grade is for all of it`),
      element("ol", { className: "members" }, ...row.members.map((member) => element("li", {},
        `${member.object_id}, score ${number(member.score, 3)}${["object", null].includes(member.kind) ? "" : `, ${member.kind}`}`))));
  }
  if (page.reveal) {
    words.append(element("ul", { className: "others" }, ...(row.others ?? []).map((other) =>
      element("li", {}, `${other.grader}: ${other.grade}${other.comment ? `, ${other.comment}` : ""}`))));
    if (!row.others?.length) words.append("nobody else has graded it");
  }
  return [
    element("h1", {}, row.object_id, grade ? element("span", { className: `badge ${grade}` }, grade) : null),
    element("div", { className: page.side ? "views wide" : "views" }, ...views),
    element("p", { id: "size", role: "status" }),
    element("div", { className: "below" },
      element("dl", {}, ...Object.entries(facts).flatMap(([name, value]) =>
        [element("dt", {}, name), element("dd", {}, `${value}`)])),
      words,
      element("ul", { className: "links", "aria-label": "other archives" }, ...Object.entries(row.links).map(([name, url]) =>
        element("li", {}, element("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, name))))),
  ];
}

export function summary(found) {
  const parts = [element("p", {}, `${found.graded} of ${found.candidates} candidates are graded.`)];
  parts.push(table(["grader", "A", "B", "C", "X"], found.graders.map((row) => [row.grader, row.A, row.B, row.C, row.X])));
  if (found.alpha !== null) {
    parts.push(element("h3", {}, "Agreement"),
      element("p", {}, `Krippendorff’s alpha ${found.alpha.toFixed(3)} (ordinal) over ${found.shared} shared candidates`));
  }
  if (found.pairs.length) {
    parts.push(table(["graders", "shared", "Cohen’s kappa", "quadratic"], found.pairs.map((pair) =>
      [pair.graders.join(" and "), pair.objects, fixed(pair.kappa, 3), fixed(pair.kappa_weighted, 3)])));
  }
  for (const [who, rows] of Object.entries(found.purity)) {
    parts.push(element("h3", {}, `Purity of the top, by ${who}`),
      table(["top", "graded", "A or B", "purity of the graded", "68% interval"], rows.map((row) =>
        [row.top, row.graded, row.lenses, fixed(row.purity, 2),
          row.low === null ? "-" : `${fixed(row.low, 2)} to ${fixed(row.high, 2)}`])));
  }
  return parts;
}

function table(heads, rows) {
  const line = (tag, cells) => element("tr", {}, ...cells.map((cell) => element(tag, {}, `${cell}`)));
  return element("table", {}, line("th", heads), ...rows.map((cells) => line("td", cells)));
}

const number = (value, digits) => (value === null ? "-" : Number(value.toPrecision(digits)).toString());
const fixed = (value, digits) => (value === null ? "-" : value.toFixed(digits));
/** AB magnitude of a flux, or the value of what is none. */
function brightness(value, end) {
  if (end.zero_point === null) return value === null ? "-" : `${number(value, 3)} ${end.unit}`;
  return value > 0 ? (end.zero_point - 2.5 * Math.log10(value)).toFixed(2) : "-";
}
