const FIRST = 60, SLICE = 200;  // cards that are made at once, and then in each pause
const { about, rows } = JSON.parse(document.getElementById("data").textContent);

// ---- Words for numbers ----
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const brief = (value) => Number(value.toPrecision(3)).toString();
const valueOf = (row) => row.probability ?? row.score ?? null;
const showValue = (row) => {
  if (row.probability !== null) return percent(row.probability);
  return row.score === null ? "not a number" : brief(row.score);
};
const showError = (row) => {
  if (row.error === null) return row.method === "score-cam" ? "unknown" : "not estimated by this method";
  const { expected, low, high } = row.error;
  return high === 0 ? "0 (exact)" : `${brief(expected)} (90 %: ${brief(low)} to ${brief(high)})`;
};
const showBox = (box) => `${box.left}, ${box.top} to ${box.right}, ${box.bottom}`;
const showPreset = (row) => row.preset === row.method ? "" : `preset ${row.preset}`;
const FLAGS = {
  failed: () => "failed",
  flat: () => "flat map",
  low: () => `confidence below ${percent(about.least_probability, 0)}`,
  edge: () => "evidence at the cut",
  cropped: (row) => row ? `${percent(row.cut, 0)} cut off` : "part of the photo cut off",
};

function drawMarks(frame, row) {
  if (!row.maximum || frame.querySelector("svg")) return;
  const draw = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const { left, top, right, bottom } = row.peak_box, { x, y } = row.maximum;
  const svg = draw("svg", { viewBox: `0 0 ${row.width} ${row.height}`, "aria-hidden": "true" });
  for (const layer of ["under", "over"]) {
    svg.append(draw("path", { class: layer, d: `M${left} ${top}H${right}V${bottom}H${left}Z` }));
    svg.append(draw("path", { class: `dot ${layer}`, d: `M${x + .5} ${y + .5}h0` }));
  }
  frame.append(svg);
}

function bring(card) {
  const row = rows[card.dataset.row], images = [...card.querySelectorAll("img")];
  drawMarks(images[1].parentElement, row);
  show(images, row.photo, [0, 1 + row.place]);
}

// ---- Cards ----
const cards = new Map();
function cardOf(number) {
  if (!cards.has(number)) cards.set(number, rows[number].failure ? makeFailed(number) : makeCard(number));
  return cards.get(number);
}
function makeFailed(number) {
  const row = rows[number], card = make("li", "card failed");
  card.dataset.row = number;
  card.append(make("h2", "", row.name), badges(row), make("p", "message", row.failure));
  return card;
}
function makeCard(number) {
  const row = rows[number], card = make("li", "card");
  card.dataset.row = number;
  const open = make("button", "open");
  open.type = "button";
  open.setAttribute("aria-label", `Enlarge ${row.name}: ${row.target}, ${showValue(row)}`);
  open.onclick = () => enlarge(number);
  const pair = make("span", "pair");
  for (const what of ["photo", "overlay"]) {
    const frame = make("span", "frame"), image = make("img");
    image.alt = what;
    image.decoding = "async";
    frame.append(image);
    pair.append(frame);
  }
  open.append(pair);
  const bar = make("div", "bar");
  bar.append(make("span", "", "0"), make("i"), make("span", "", "1: maximum"));
  const head = make("div", "head");
  head.append(make("h2", "", row.target), make("span", "value", showValue(row)));
  card.append(open, bar, head);
  if (row.probability !== null) {
    const share = make("div", "share"), fill = make("i");
    fill.style.width = `${100 * Math.min(1, Math.max(0, row.probability))}%`;
    share.append(fill);
    card.append(share);
  }
  card.append(make("p", "name", row.name), badges(row));
  const how = [row.method, showPreset(row), row.layer && `layer ${row.layer}`, `error ${showError(row)}`];
  card.append(make("p", "facts", how.filter(Boolean).join(" · ")));
  card.append(make("p", "facts", row.maximum
    ? `maximum at ${row.maximum.x}, ${row.maximum.y} · box ${showBox(row.peak_box)} · area above half ${percent(row.share_above_half)}`
    : "the map is zero everywhere"));
  return card;
}
function badges(row, made = make("ul", "badges")) {
  made.replaceChildren(...row.flags.map((flag) => make("li", flag, FLAGS[flag](row))));
  return made;
}

// ---- Filter, sort, and show ----
let chosen = [], made = 0, pause = 0;
const haystacks = rows.map((row) =>
  [row.name, row.path, row.target, row.label, row.index, row.failure].filter((part) => part != null).join("\n").toLowerCase());
const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const scaled = rows.every((row) => row.failure || row.probability !== null) ? 100 : 1;  // else scores, not shares

// Two classes may have the same first name, such as the two cranes of ImageNet.
const keyOf = (row) => row.class == null ? "" : `${row.index}\n${row.class}`;

function update() {
  const parts = at("text").value.toLowerCase().split(/\s+/).filter(Boolean), name = at("class").value;
  const from = at("from").value === "" ? -Infinity : at("from").value / scaled;
  const to = at("to").value === "" ? Infinity : at("to").value / scaled;
  const limited = from !== -Infinity || to !== Infinity;
  const flags = [...document.querySelectorAll("#flags input:checked")].map((one) => one.value);
  chosen = [...rows.keys()].filter((number) => {
    const row = rows[number], value = valueOf(row);
    return parts.every((part) => haystacks[number].includes(part))
      && (!name || keyOf(row) === name)
      && (!limited || (value !== null && value >= from - 1e-9 && value <= to + 1e-9))
      && (!flags.length || flags.some((flag) => flag === "none" ? !row.flags.length : row.flags.includes(flag)));
  });
  sort(at("sort").value, at("order").getAttribute("aria-pressed") === "true" ? -1 : 1);
  cancelIdle(pause);
  made = 0;
  near.disconnect();
  list.replaceChildren();
  append(FIRST);
  const photos = new Set(chosen.map((number) => rows[number].photo)).size;
  at("found").textContent = chosen.length === rows.length
    ? `All ${words(rows.length, "entry", "entries")}`
    : `${chosen.length.toLocaleString("en")} of ${words(rows.length, "entry", "entries")}, ${words(photos, "photo")}`;
  at("nothing").hidden = chosen.length > 0;
  at("nothing").textContent = rows.length ? "Nothing matches these filters." : "Nothing was explained.";
}
const keys = {
  name: (row) => row.name,
  class: (row) => row.class ?? null,
  value: valueOf,
  error: (row) => row.error ? row.error.expected : null,
  flags: (row) => row.flags.length,
};
function sort(by, sign) {
  const key = keys[by] ?? ((row) => row[by] ?? null);
  chosen.sort((a, b) => {
    const one = key(rows[a]), other = key(rows[b]);
    if (one === null || other === null) return (one === null) - (other === null) || a - b;  // what has none comes last
    const found = typeof one === "string" ? order.compare(one, other) : one - other;
    return sign * (found || (by === "photo" ? a - b : 0)) || a - b;
  });
}
const onIdle = self.requestIdleCallback ?? ((work) => setTimeout(work, 30));
const cancelIdle = self.cancelIdleCallback ?? clearTimeout;
function append(count) {
  const next = chosen.slice(made, made + count).map(cardOf);
  made += next.length;
  list.append(...next);
  for (const card of next) if (!card.classList.contains("failed")) near.observe(card);
  if (made < chosen.length) pause = onIdle(() => append(SLICE), { timeout: 300 });
}
function appendAll() {
  cancelIdle(pause);
  if (made < chosen.length) append(chosen.length);
}

// ---- The large view ----
let shown = -1;
const openable = () => chosen.filter((number) => !rows[number].failure);
function enlarge(number) {
  const row = rows[number], all = openable();
  shown = number;
  at("large-title").textContent = `${row.target}, ${showValue(row)}`;
  at("place").textContent = `${all.indexOf(number) + 1} of ${all.length.toLocaleString("en")}`;
  at("previous").disabled = all[0] === number;
  at("next").disabled = all.at(-1) === number;
  const images = [at("large-photo"), at("large-overlay")];
  images[0].alt = `Photo ${row.name}`;
  images[1].alt = `Overlay for ${row.target}`;
  for (const image of images) image.removeAttribute("src");
  show(images, row.photo, [0, 1 + row.place]);
  images[1].parentElement.querySelector("svg")?.remove();
  drawMarks(images[1].parentElement, row);
  badges(row, at("large-flags"));
  const facts = [
    ["Photo", row.path], ["Size", `${row.width} x ${row.height} pixels`],
    ["Target", row.label === null ? row.target : `${row.index}: ${row.label}`],
    [row.probability === null ? "Score" : "Probability", showValue(row)],
    ["Model", row.model], ["Layer", row.layer],
    ["Method", row.options ? `${row.method} (${row.options})` : row.method], ["Preset", row.preset],
    ["Stated error (1 - r)", showError(row)],
    [row.method === "score-cam" ? "Masked inputs" : "Scored inputs", row.scored.toLocaleString("en")],
    ["Maximum (x, y)", row.maximum ? `${row.maximum.x}, ${row.maximum.y}` : "none: the map is flat"],
    ["Box around it, to half the maximum", row.maximum ? showBox(row.peak_box) : "none"],
    ["Box of all places above half", row.maximum ? showBox(row.half_maximum_box) : "none"],
    ["Area above half the maximum", row.maximum ? `${percent(row.share_above_half)} of the photo` : "none"],
    ["Evidence at the crop's edge", row.maximum ? `${percent(row.share_at_edge)} (a constant map: 19 %)` : "none"],
    ["Cut off, not seen by the model", `${percent(row.cut)} of the photo`],
    ["Run", `${row.provider}, ${brief(row.seconds)} s`],
  ];
  at("facts").replaceChildren(...facts.filter(([, text]) => text).map(([name, text]) => pairOf(name, text)));
  if (!large.open) large.showModal();
}
function step(by) {
  const all = openable(), next = all[all.indexOf(shown) + by];
  if (next === undefined) return;
  enlarge(next);
  if (document.activeElement.disabled || document.activeElement === document.body) at("close").focus();
}
large.addEventListener("close", () => {
  while (chosen.indexOf(shown) >= made) append(SLICE);
  const card = cards.get(shown);
  card.scrollIntoView({ block: "nearest" });
  card.querySelector("button").focus();
});

moveByArrows();

// ---- Controls ----
function countBy(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}
function prepare() {
  const explained = rows.filter((row) => !row.failure);
  const distinct = (name) => [...new Set(explained.map((row) => row[name]))].filter(Boolean);
  const few = (one, found) => found.length > 3 ? words(found.length, one) : found.length ? `${one} ${found.join(", ")}` : "";
  const failed = rows.length - explained.length;
  at("about").textContent = [
    words(about.photos, "photo"), words(explained.length, "explanation"), failed ? `${failed} failed` : "",
    few("model", distinct("model")), few("method", distinct("method")), few("layer", distinct("layer")),
    `ortcam ${about.version}`, about.created.replace("T", " ").replace(/:\d\dZ$/, " UTC"),
  ].filter(Boolean).join(" · ");
  const classes = [...countBy(explained.map(keyOf))].map(([key, count]) => [...key.split("\n"), count, key]);
  classes.sort((a, b) => order.compare(a[1], b[1]));
  const names = countBy(classes.map((one) => one[1]));
  at("class").firstElementChild.textContent = `all classes (${classes.length})`;
  at("class").append(...classes.map(([index, name, count, key]) =>
    new Option(`${name}${names.get(name) > 1 ? `, class ${index}` : ""} (${count})`, key)));
  const flags = countBy(rows.flatMap((row) => row.flags.length ? row.flags : ["none"]));
  for (const [flag, text] of [...Object.entries(FLAGS).map(([flag, say]) => [flag, say(null)]), ["none", "no flag"]]) {
    if (!flags.has(flag)) continue;
    const label = make("label", "tick"), box = make("input");
    Object.assign(box, { type: "checkbox", value: flag });
    label.append(box, `${text} (${flags.get(flag)})`);
    at("flags").append(label);
  }
  at("flags").hidden = !flags.size;
  if (scaled === 1) {
    at("span-name").textContent = "Probability or score";
    at("sort").querySelector("[value=value]").textContent = "probability or score";
  }
}
const setOrder = (down) => {
  at("order").setAttribute("aria-pressed", down);
  at("order").textContent = down ? "descending ↓" : "ascending ↑";
};
at("order").onclick = () => { setOrder(at("order").getAttribute("aria-pressed") !== "true"); update(); };
at("controls").addEventListener("submit", (event) => event.preventDefault());
at("controls").addEventListener("input", (event) => {
  if (event.target.id === "marks") document.body.classList.toggle("marked", event.target.checked);
  else update();
});
at("controls").addEventListener("reset", () => setTimeout(() => {
  document.body.classList.remove("marked");
  setOrder(false);
  update();
}));
addEventListener("beforeprint", () => {
  appendAll();
  near.disconnect();  // it would take the pictures away again
  for (const number of openable()) bring(cards.get(number));
});
addEventListener("afterprint", () => {
  for (const number of openable()) near.observe(cards.get(number));
});
at("panel").open = matchMedia("(min-width: 40rem)").matches;
prepare();
update();
