const FIRST = 24, SLICE = 100;  // cards that are made at once, and then in each pause
const FIRST_PAIRS = 11, FIRST_PHOTOS = 6;
const { about, pairs, rows } = JSON.parse(document.getElementById("data").textContent);
const { columns } = about, others = columns.map((_, place) => place).slice(1);
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}\u00a0%`;
const brief = (value) => Number(value.toPrecision(3)).toString();
const round = (r) => r === null ? "none" : r.toFixed(3);
const valueOf = (cell) => cell.probability ?? cell.score;
const showShare = (share) => share > 0 && share < .0005 ? "<\u00a00.1\u00a0%" : percent(share);
const showValue = (cell) => cell.probability === null ? brief(cell.score) : showShare(cell.probability);

// ---- Words ----
const rOf = (row, column) => column === "" ? row.least : row.cells[column].r;
const showR = (r) => r === null ? "no r" : `r ${round(r)}`;
const isLow = (r) => r !== null && r < about.low;
const leastOf = (row) => others.reduce((a, b) => (row.cells[b].r ?? -2) < (row.cells[a].r ?? -2) ? b : a);
const FLAGS = {
  changed: ["another top class", (row, column) => column === "" ? row.cells.some((cell) => cell.changed) : row.cells[column].changed],
  low: [`r below ${about.low}`, (row, column) => column === "" ? others.some((place) => isLow(row.cells[place].r)) : isLow(rOf(row, column))],
  flat: ["no r", (row, column) => rOf(row, column) === null],
};
const count = (flag) => rows.filter((row) => FLAGS[flag][1](row, "")).length;
const isTop = (cell) => cell.top && cell.top.index === cell.index && !cell.changed;
function captionOf(row, place) {
  const caption = make("figcaption");
  if (place < 0) {
    caption.append(make("span", "column", "Photo"), make("span", "", `${row.width} x ${row.height}`));
    return caption;
  }
  const cell = row.cells[place];
  caption.append(make("span", "column", columns[place].name));
  caption.append(place ? make("span", cell.r === null || cell.r < about.low ? "r low" : "r", showR(cell.r)) : make("span", "", "reference"));
  if (cell.flat) caption.append(make("span", "r low", "flat map"));
  const target = make("span", "target", `${cell.target} `);
  target.append(make("span", "value", `${cell.probability === null ? "score " : ""}${showValue(cell)}`));
  caption.append(target);
  if (cell.probability !== null) {
    const share = make("span", "share"), fill = make("i");
    fill.style.width = `${100 * Math.min(1, Math.max(0, cell.probability))}%`;
    share.append(fill);
    caption.append(share);
  }
  if (cell.top && !isTop(cell)) caption.append(make("span", cell.changed ? "changed" : "", `${cell.changed ? "another top class" : "top class"}: ${cell.top.name} ${showShare(cell.top.probability)}`));
  return caption;
}

// ---- Cards ----
const bring = (card) => show([...card.querySelectorAll("img")], Number(card.dataset.row));
const cards = new Map();
function cardOf(number) {
  if (!cards.has(number)) cards.set(number, makeCard(number));
  return cards.get(number);
}
function frameOf(row) {
  const frame = make("span", "frame"), image = make("img");
  image.alt = "";  // the caption says it
  image.decoding = "async";
  frame.style.aspectRatio = Math.min(1.8, Math.max(.75, row.width / row.height));
  frame.append(image);
  return frame;
}
const figures = (row) => [-1, ...columns.keys()].map((place) => {
  const figure = make("figure");
  figure.append(frameOf(row), captionOf(row, place));
  return figure;
});
function makeCard(number) {
  const row = rows[number], card = make("li", "card"), head = make("div", "head"), title = make("h3"), open = make("button", "open", row.name);
  card.dataset.row = number;
  open.type = "button";
  open.setAttribute("aria-label", `Enlarge ${row.name}: ${row.least === null ? "no r" : `least r ${round(row.least)}`}`);
  open.onclick = () => enlarge(number);
  title.append(open);
  const rank = make("span", "rank", `${(number + 1).toLocaleString("en")} of ${rows.length.toLocaleString("en")}`);
  rank.append(make("span", "wide-only", " by disagreement"));
  head.append(title, rank);
  const maps = make("div", "maps");
  maps.append(...figures(row));
  card.append(head, maps);
  return card;
}

// ---- Filter, sort, and show ----
let chosen = [], made = 0, pause = 0;
const haystacks = rows.map((row) => [row.name, row.path, ...row.cells.flatMap((cell) => [cell.target, cell.label, cell.top?.name])]
  .filter((part) => part != null).join("\n").toLowerCase());
const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const movedOf = (row, column) => Math.max(...(column === "" ? others : [column]).map((place) => Math.abs(valueOf(row.cells[place]) - valueOf(row.cells[0]))));
const keys = {
  r: (number, column) => rOf(rows[number], column) ?? -2,  // flat maps come first
  moved: (number, column) => movedOf(rows[number], column),
  order: (number) => rows[number].order,
};
function update() {
  const parts = at("text").value.toLowerCase().split(/\s+/).filter(Boolean), column = at("column").value;
  const from = at("from").value === "" ? -Infinity : Number(at("from").value);
  const to = at("to").value === "" ? Infinity : Number(at("to").value);
  const limited = from !== -Infinity || to !== Infinity;
  const flags = [...document.querySelectorAll("#flags input:checked")].map((one) => one.value);
  chosen = [...rows.keys()].filter((number) => {
    const row = rows[number], r = rOf(row, column);
    return parts.every((part) => haystacks[number].includes(part))
      && (!limited || (r !== null && r >= from - 1e-9 && r <= to + 1e-9))
      && (!flags.length || flags.some((flag) => FLAGS[flag][1](row, column)));
  });
  const by = at("sort").value, sign = at("order").getAttribute("aria-pressed") === "true" ? -1 : 1;
  chosen.sort((a, b) => sign * (by === "name" ? order.compare(rows[a].name, rows[b].name) : keys[by](a, column) - keys[by](b, column)) || a - b);
  cancelIdle(pause);
  made = 0;
  near.disconnect();
  list.replaceChildren();
  append(FIRST);
  at("found").textContent = chosen.length === rows.length ? `All ${words(rows.length, "photo")}`
    : `${chosen.length.toLocaleString("en")} of ${words(rows.length, "photo")}`;
  at("nothing").hidden = chosen.length > 0;
}
const onIdle = self.requestIdleCallback ?? ((work) => setTimeout(work, 30));
const cancelIdle = self.cancelIdleCallback ?? clearTimeout;
function append(count) {
  const next = chosen.slice(made, made + count).map(cardOf);
  made += next.length;
  list.append(...next);
  for (const card of next) near.observe(card);
  if (made < chosen.length) pause = onIdle(() => append(SLICE), { timeout: 300 });
}

// ---- The large view ----
let shown = -1, opener = null;
function enlarge(number, order = chosen) {
  const row = rows[number];
  if (!large.open) opener = document.activeElement;
  shown = number;
  large.order = order;
  at("large-title").textContent = row.name;
  at("place").textContent = `${order.indexOf(number) + 1} of ${order.length.toLocaleString("en")}`;
  at("previous").disabled = order[0] === number;
  at("next").disabled = order.at(-1) === number;
  at("large-pictures").replaceChildren(...figures(row));
  show([...at("large-pictures").querySelectorAll("img")], number);
  fillTable(at("large-pairs"), ["column", "compared with", "r", "Spearman", "energy in common"],
    pairs.map((pair, place) => [...namesOf(pair), ...row.pairs[place].map((value) => value === null ? "none" : value.toFixed(3))]));
  const cellFacts = columns.map((column, place) => {
    const cell = row.cells[place];
    return [column.name, [
      `${cell.target}: ${showValue(cell)}${place && cell.target === row.cells[0].target ? `, ${changeOf(row, place)} from the first column` : ""}`,
      cell.top ? `top class: ${cell.top.name} ${showShare(cell.top.probability)}` : "",
      cell.flat ? "flat map" : "", cell.error === null ? "" : cell.error === 0 ? "exact map" : `stated error ${brief(cell.error)}`,
      words(cell.scored, "scored input"),
    ].filter(Boolean).join("; ")];
  });
  const facts = [["Photo", row.path ?? row.name], ["Place by disagreement", `${number + 1} of ${rows.length}`], ...cellFacts];
  at("facts").replaceChildren(...facts.map(([name, text]) => pairOf(name, text)));
  if (!large.open) large.showModal();
}
function changeOf(row, place) {
  const moved = valueOf(row.cells[place]) - valueOf(row.cells[0]), sign = moved < 0 ? "−" : "+";
  return row.cells[place].probability === null ? `${sign}${brief(Math.abs(moved))}` : `${sign}${(100 * Math.abs(moved)).toFixed(1)} points`;
}
function step(by) {
  const next = large.order[large.order.indexOf(shown) + by];
  if (next === undefined) return;
  enlarge(next, large.order);
  if (document.activeElement.disabled || document.activeElement === document.body) at("close").focus();
}
large.addEventListener("close", () => {
  const fromFirst = opener?.closest("#first");
  while (!fromFirst && made <= chosen.indexOf(shown)) append(SLICE);
  const button = cards.get(shown)?.querySelector("button");
  const back = fromFirst || !button?.isConnected ? opener : button;
  back?.scrollIntoView({ block: "nearest" });
  back?.focus();
});
moveByArrows();

// ---- The summary ----
const namesOf = (pair) => [columns[pair.second].name, columns[pair.first].name];
function fillTable(table, heads, lines) {
  const line = (cells, tag) => {
    const row = make("tr");
    row.append(...cells.map((text) => {
      const [first, below] = [text].flat(), cell = make(tag, "", first);
      if (below) cell.append(make("span", "below", below));
      return cell;
    }));
    if (tag === "th") for (const cell of row.cells) cell.scope = "col";
    return row;
  };
  table.tHead.replaceChildren(line(heads, "th"));
  table.tBodies[0].replaceChildren(...lines.map((cells) => line(cells, "td")));
}
const withSpan = ([mean, low, high], say, text = mean === null ? "none" : say(mean)) => [text, low === null ? "" : `${say(low)} to ${say(high)}`];
function preparePairs() {
  const classes = pairs.some((pair) => pair.changed !== null), flats = pairs.some((pair) => pair.flat);
  const whole = (share) => percent(share, 0);
  fillTable(at("pairs"), ["column", "compared with", "mean r", "least r", ...(classes ? ["another top class"] : []), ...(flats ? ["no r"] : [])],
    pairs.map((pair) => [
      ...namesOf(pair), withSpan(pair.r, round), round(pair.least),
      ...(classes ? [pair.changed === null ? "" : withSpan(pair.changed_share, whole, `${words(pair.changed, "photo")}, ${whole(pair.changed_share[0])}`)] : []),
      ...(flats ? [pair.flat] : []),
    ]));
  [...at("pairs").tBodies[0].rows].forEach((line, number) => {
    const { r, least } = pairs[number];
    if (r[0] !== null && r[0] < about.low) line.cells[2].className = "low";
    if (least !== null && least < about.low) line.cells[3].className = "low";
    line.hidden = number >= FIRST_PAIRS;
  });
  at("all-pairs").hidden = pairs.length <= FIRST_PAIRS;
  at("all-pairs").textContent = `Show all ${pairs.length} pairs`;
  at("all-pairs").onclick = () => {
    for (const line of at("pairs").tBodies[0].rows) line.hidden = false;
    at("all-pairs").hidden = true;
    at("pairs-box").focus();
  };
}
function prepareFirst() {
  at("first").replaceChildren(...rows.slice(0, FIRST_PHOTOS).map((row, number) => {
    const item = make("li"), button = make("button"), two = make("span", "two"), place = leastOf(row), cell = row.cells[place];
    button.type = "button";
    two.append(frameOf(row), frameOf(row));
    const changed = FLAGS.changed[1](row, "") ? "; another top class" : "";
    button.append(two, make("span", "text", row.name), make("span", "text soft", `${columns[place].name}: ${showR(cell.r)}${changed}`));
    button.onclick = () => enlarge(number, [...rows.keys()]);
    show([...two.querySelectorAll("img")], number, [1, 1 + place]);
    item.append(button);
    return item;
  }));
}
function prepareFilters() {
  at("column").append(...others.map((place) => new Option(columns[place].name, place)));
  for (const [flag, [text]] of Object.entries(FLAGS)) {
    if (!count(flag)) continue;
    const label = make("label", "tick"), box = make("input");
    Object.assign(box, { type: "checkbox", value: flag });
    label.append(box, `${text} (${count(flag)})`);
    at("flags").append(label);
  }
  at("flags").hidden = !at("flags").querySelector("input");
  if (!about.classifies) at("sort").querySelector("[value=moved]").textContent = "change of the score";
}
const MEANINGS = [
  ["Target", `All columns explain the target that the first column's model finds, or the target that was asked for. ${about.classifies ? "The number beside it is its probability by the column's model." : "The number beside it is its score by the column's model."}`],
  ["r", "Pearson's correlation of two maps: 1 for equal maps. It says whether a map stayed the same, not whether it is right. A flat map has no r."],
  ["Spearman", "The same of the ranks: whether the same places come first."],
  ["Energy in common", "Both maps are divided by their sum; the sum of the smaller values is the share of the evidence in common, from 0 to 1."],
  ["Another top class", "The most probable class of the column's model is not the most probable class of the first column's model."],
  ["By disagreement", "Photos with a flat map come first, then those with the least r of a column with the first column."],
  ["Maps", `They are compared ${about.definitions.maps}.`],
  ["Intervals", `${about.definitions.intervals}.`],
  ["Stated error", "The estimate of 1 - r between a map of a budget and the exact map."],
];
function prepare() {
  document.body.style.setProperty("--across", columns.length + 1);
  for (const place of [list, at("large-pictures")]) {
    place.classList.toggle("few", columns.length < 4);
    place.classList.toggle("some", columns.length > 3 && columns.length < 7);
    place.classList.toggle("even", columns.length === 3);
  }
  const shared = ["model", "layer", "method", "provider"].filter((key) => new Set(columns.map((one) => one[key])).size === 1);
  at("about").textContent = [
    words(rows.length, "photo"), `each column is compared with ${columns[0].name}`, ...shared.map((key) => `${key} ${columns[0][key]}`),
    `ortcam ${about.ortcam}`, about.created.replace("T", " ").replace(/:\d\dZ$/, " UTC"),
  ].join(" · ");
  const share = (number) => `${number} (${percent(number / rows.length, 0)})`;
  const tiles = [
    ["Photos", rows.length.toLocaleString("en")], ["Columns", columns.length],
    ...(pairs.length === 1 ? [["Mean r", round(pairs[0].r[0])]] : []),
    [`Photos with r below ${about.low}${columns.length > 2 ? " in a column" : ""}`, share(count("low"))],
    ...(pairs.some((pair) => pair.changed !== null) ? [["Photos with another top class", share(count("changed"))]] : []),
    ...(count("flat") ? [["Photos with a flat map", share(count("flat"))]] : []),
    ...(about.failures.length ? [["Failed photos", about.failures.length]] : []),
  ];
  at("tiles").replaceChildren(...tiles.map(([name, text]) => pairOf(name, text)));
  at("lines").replaceChildren(...about.lines.map((text) => make("li", "", text)));
  at("nothing").textContent = "Nothing matches these filters.";
  preparePairs();
  prepareFirst();
  prepareFilters();
  at("failures").hidden = !about.failures.length;
  at("failures").querySelector("ul").replaceChildren(...about.failures.map((one) => make("li", "", `${one.photo}: ${one.error}`)));
  at("meanings").replaceChildren(...MEANINGS.map(([name, text]) => pairOf(name, text)));
}
const setOrder = (down) => {
  at("order").setAttribute("aria-pressed", down);
  at("order").textContent = down ? "descending ↓" : "ascending ↑";
};
at("order").onclick = () => { setOrder(at("order").getAttribute("aria-pressed") !== "true"); update(); };
at("sort").addEventListener("input", () => setOrder(at("sort").value === "moved"));  // the largest change first
at("controls").addEventListener("submit", (event) => event.preventDefault());
at("controls").addEventListener("input", update);
at("controls").addEventListener("reset", () => setTimeout(() => { setOrder(false); update(); }));
addEventListener("beforeprint", () => {
  cancelIdle(pause);
  if (made < chosen.length) append(chosen.length);
  near.disconnect();
  for (const number of chosen) bring(cards.get(number));
  at("help").open = true;
});
addEventListener("afterprint", () => { for (const number of chosen) near.observe(cards.get(number)); });
at("panel").open = matchMedia("(min-width: 40rem)").matches;
prepare();
update();
