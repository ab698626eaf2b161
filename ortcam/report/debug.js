const FIRST_PAIRS = 8, FIRST_PHOTOS = 6;
const { about, means, pairs, rows } = JSON.parse(document.getElementById("data").textContent);
const percent = (share, digits = 1) => share === null ? "none" : `${(100 * share).toFixed(digits)}\u00a0%`;
const brief = (value) => Number(value.toPrecision(3)).toString();
const flagged = rows.filter((row) => row.flags.length).length;
const winning = rows.filter((row) => row.without?.true_wins).length;

// ---- Words ----
const FLAGS = {
  outside: (row) => row ? `${percent(row.evidence.predicted.outside, 0)} outside the object` : "outside the object",
  corner: (row) => row ? `${percent(row.evidence.predicted.part_share, 0)} in the ${row.evidence.predicted.part} corner` : "in a corner",
  frame: (row) => row ? `${percent(row.evidence.predicted.measures.share_at_edge, 0)} at the frame` : "at the frame",
  flat: () => "flat map",
  cut: (row) => row ? `${percent(row.object_cut, 0)} of the object cut off` : "object cut off",
};
const PICTURES = [
  (row) => [row.object_box ? "Photo and object" : "Photo", ""],
  (row) => ["Speaks for ", row.predicted.name],
  (row) => ["Speaks for ", row.true.name],
  (row) => ["Top region removed", row.without ? "" : ": none"],
  (row) => ["Contrast: more for ", row.predicted.name],
  (row) => ["Contrast: more for ", row.true.name],
];
function captionOf(row, place, tag = "span") {
  const [text, name] = PICTURES[place](row), caption = make(tag, "caption", text);
  if (name) caption.append(make("b", "", name));
  return caption;
}
function withoutText(row) {
  const { without } = row;
  if (!without) return "The map of the predicted class is flat: no region to remove.";
  const other = [row.predicted.index, row.true.index].includes(without.winner.index) ? "" : `; most probable: ${without.winner.name} ${percent(without.winner.probability)}`;
  return `Without the top region (${percent(without.share, 0)} of the input): ${row.predicted.name} ${percent(without.predicted)}, ${row.true.name} ${percent(without.true)}${other}`;
}
function outsideText(row) {
  const { predicted, true: truth } = row.evidence;
  return predicted.outside === null && truth.outside === null ? ""
    : `Evidence outside the object: predicted ${percent(predicted.outside, 0)}, true ${percent(truth.outside, 0)}`;
}
function badges(row, made = make("ul", "badges")) {
  const wins = row.without && make("li", row.without.true_wins ? "wins" : "fails", row.without.true_wins ? "true class wins without the region" : "true class does not win without the region");
  made.replaceChildren(...row.flags.map((flag) => make("li", flag, FLAGS[flag](row))), ...(wins ? [wins] : []));
  return made;
}

const bring = (card) => show([...card.querySelectorAll("img")], Number(card.dataset.row));

// ---- Cards ----
const cards = new Map();
function cardOf(number) {
  if (!cards.has(number)) cards.set(number, makeCard(number));
  return cards.get(number);
}
function makePictures(row, tag) {
  return PICTURES.map((_, place) => {
    const box = make(tag), frame = make("span", "frame"), image = make("img");
    image.alt = "";  // the caption says it
    image.decoding = "async";
    frame.append(image);
    if (!place && row.object_box) frame.append(outline(row));
    box.append(frame, captionOf(row, place, tag === "figure" ? "figcaption" : "span"));
    return box;
  });
}
function outline(row) {  // of the object that the data set states
  const draw = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const { left, top, right, bottom } = row.object_box;
  const svg = draw("svg", { viewBox: `0 0 ${row.size.width} ${row.size.height}`, "aria-hidden": "true" });
  for (const layer of ["under", "over"]) svg.append(draw("path", { class: layer, d: `M${left} ${top}H${right}V${bottom}H${left}Z` }));
  return svg;
}
function makeCard(number) {
  const row = rows[number], card = make("li", "card"), open = make("button", "open"), six = make("span", "six");
  card.dataset.row = number;
  open.type = "button";
  open.onclick = () => enlarge(number);
  six.append(...makePictures(row, "span"));
  open.append(make("span", "unseen", `Enlarge ${row.photo}: ${row.true.name} taken for ${row.predicted.name}.`), six);
  const sides = make("div", "sides");
  for (const side of ["predicted", "true"]) {
    const share = make("div", `share ${side}`), fill = make("i");
    fill.style.width = `${100 * row[side].probability}%`;
    share.append(fill);
    sides.append(make("span", "role", side), make("span", "class", row[side].name), make("span", "value", percent(row[side].probability)), share);
  }
  card.append(open, sides, make("p", "name", row.photo), badges(row), make("p", "facts main", withoutText(row)));
  const part = row.evidence.predicted.part;
  const facts = [
    `evidence in common ${percent(row.in_common, 0)}`,
    part ? `densest ninth: ${part}, ${percent(row.evidence.predicted.part_share, 0)}` : "",
  ];
  for (const text of [outsideText(row), facts.filter(Boolean).join(" · ")]) if (text) card.append(make("p", "facts", text));
  return card;
}

// ---- Filter, arrange, and show ----
let chosen = [];
const haystacks = rows.map((row) =>
  [row.photo, row.path, ...[row.true, row.predicted].flatMap((one) => [one.name, one.label, one.index])].filter((part) => part != null).join("\n").toLowerCase());
function update() {
  const parts = at("text").value.toLowerCase().split(/\s+/).filter(Boolean), pair = at("pair").value;
  const flags = [...document.querySelectorAll("#flags input:checked")].map((one) => one.value);
  const has = (row, flag) => flag === "none" ? !row.flags.length : flag === "wins" ? Boolean(row.without?.true_wins) : row.flags.includes(flag);
  chosen = [...rows.keys()].filter((number) => {
    const row = rows[number];
    return parts.every((part) => haystacks[number].includes(part)) && (pair === "" || row.pair === Number(pair))
      && (!flags.length || flags.some((flag) => has(row, flag)));
  });
  near.disconnect();
  const groups = new Map();
  if (at("arrange").value === "pair") {
    chosen.sort((a, b) => rows[a].pair - rows[b].pair || a - b);
    for (const number of chosen) groups.set(rows[number].pair, [...(groups.get(rows[number].pair) ?? []), number]);
  } else if (chosen.length) groups.set(null, chosen);
  list.replaceChildren(...[...groups].map(([key, numbers]) => {
    const group = make("section", numbers.length > 1 ? "group several" : "group"), holder = make("ol", "cards");
    if (key !== null) group.append(make("h3", "", `${pairs[key].true_name} taken for ${pairs[key].predicted_name}: ${words(pairs[key].count, "photo")}`));
    holder.append(...numbers.map(cardOf));
    group.append(holder);
    return group;
  }));
  for (const number of chosen) near.observe(cards.get(number));
  const all = `${words(rows.length, "explained photo")}`;
  const unexplained = about.misclassified - rows.length;
  at("found").textContent = (chosen.length === rows.length ? `All ${all}` : `${chosen.length} of ${all}`)
    + (unexplained > 0 ? `; ${words(unexplained, "further misclassified photo")} not explained` : "");
  at("nothing").hidden = chosen.length > 0;
  at("nothing").textContent = rows.length ? "Nothing matches these filters."
    : about.misclassified ? "No misclassified photo was explained." : "No photo is misclassified.";
  at("found").hidden = !rows.length;
}
function choosePair(number) {
  at("pair").value = number;
  update();
  at("mistakes-title").scrollIntoView();
  at("pair").focus({ preventScroll: true });
}

// ---- The large view ----
let shown = -1, opener = null;
function enlarge(number, order = chosen) {
  const row = rows[number], { predicted, true: truth } = row.evidence;
  if (!large.open) opener = document.activeElement;
  if (!order.includes(number)) order = [...rows.keys()];
  shown = number;
  large.order = order;
  at("large-title").textContent = `${row.true.name} taken for ${row.predicted.name}`;
  at("place").textContent = `${order.indexOf(number) + 1} of ${order.length.toLocaleString("en")}`;
  at("previous").disabled = order[0] === number;
  at("next").disabled = order.at(-1) === number;
  at("large-pictures").replaceChildren(...makePictures(row, "figure"));
  show([...at("large-pictures").querySelectorAll("img")], number);
  badges(row, at("large-flags"));
  const where = (one) => one.measures.maximum === null ? "the map is flat"
    : `${one.part} (${percent(one.part_share, 0)} of the evidence); maximum at ${one.measures.maximum.join(", ")}`;
  const facts = [
    ["Photo", row.path ?? row.photo], ["Size", `${row.size.width} x ${row.size.height} pixels`],
    ["Predicted class", `${row.predicted.index}: ${row.predicted.label ?? row.predicted.name}, ${percent(row.predicted.probability)}`],
    ["True class", `${row.true.index}: ${row.true.label ?? row.true.name}, ${percent(row.true.probability)}`],
    ["Counterfactual", withoutText(row)],
    ["Evidence in common", percent(row.in_common)],
    ["Evidence for the predicted class", where(predicted)], ["Evidence for the true class", where(truth)],
    ["Outside the object", outsideText(row).replace(/^[^:]*: /, "")],
    ["At the crop's edge", `predicted ${percent(predicted.measures.share_at_edge)}, true ${percent(truth.measures.share_at_edge)} (a constant map: 19 %)`],
    ["Object cut off by the crop", row.object_cut === null ? "" : percent(row.object_cut)],
    ["Not seen by the model", `${percent(row.unseen)} of the photo`],
    ["Stated error (1 - r)", row.error === null ? "not estimated" : brief(row.error)],
    ["Place among the suspicious", `${row.suspicion} of ${rows.length}`],
  ];
  at("facts").replaceChildren(...facts.filter(([, text]) => text).map(([name, text]) => pairOf(name, text)));
  if (!large.open) large.showModal();
}
function step(by) {
  const next = large.order[large.order.indexOf(shown) + by];
  if (next === undefined) return;
  enlarge(next, large.order);
  if (document.activeElement.disabled || document.activeElement === document.body) at("close").focus();
}
large.addEventListener("close", () => {
  const button = cards.get(shown)?.querySelector("button");
  const back = opener?.closest("#first") || !button?.isConnected ? opener : button;
  back?.scrollIntoView({ block: "nearest" });
  back?.focus();
});

// Arrows move from photo to photo in the list.
list.addEventListener("keydown", (event) => {
  const buttons = [...list.querySelectorAll(".open")], here = buttons.indexOf(event.target);
  if (here < 0) return;
  const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (by === undefined || !buttons[here + by]) return;
  event.preventDefault();
  buttons[here + by].focus();
});

// ---- The summary ----
function prepare() {
  const { method, model, dataset } = about;
  at("about").textContent = [
    dataset.name, `model ${model.name}`, `method ${method.spec}`, `layer ${model.layer}`,
    `ortcam ${about.ortcam}`, about.created.replace("T", " ").replace(/:\d\dZ$/, " UTC"),
  ].filter(Boolean).join(" · ");
  at("notes").replaceChildren(...dataset.notes.map((note) => make("li", "", note)));
  const tiles = [
    ["Accuracy", about.accuracy === null ? "unknown" : percent(about.accuracy)],
    ["Photos", about.photos.toLocaleString("en")],
    ["Misclassified", about.misclassified.toLocaleString("en")],
    ["Explained", rows.length < about.misclassified ? `${rows.length}, the surest` : rows.length],
    ["With a flag", flagged],
    ["True class wins without the region", `${winning} of ${rows.length}`],
  ];
  at("tiles").replaceChildren(...tiles.slice(0, rows.length ? 6 : 3).map(([name, text]) => pairOf(name, text)));
  at("suspicious").hidden = at("pairs-part").hidden = at("controls").hidden = !rows.length;
  at("pairs-part").hidden = !pairs.length;
  at("order").textContent = `Order: ${about.order}.`;
  at("first").replaceChildren(...rows.slice(0, FIRST_PHOTOS).map((row, number) => {
    const item = make("li"), button = make("button"), frame = make("span", "frame"), image = make("img");
    button.type = "button";
    image.alt = "";
    frame.append(image);
    const flags = row.flags.map((flag) => FLAGS[flag](row)).join(", ") || "no flag";
    button.append(frame, make("span", "text", `${row.true.name} taken for ${row.predicted.name}`), make("span", "text soft", `${percent(row.predicted.probability, 0)} sure; ${flags}`));
    button.onclick = () => enlarge(number, [...rows.keys()]);
    show([image], number, [1]);
    item.append(button);
    return item;
  }));
  at("means").replaceChildren(...means.map((one, place) => {
    const figure = make("figure"), image = make("img"), name = ["misclassified", "correctly classified"][place];
    image.src = `data:image/png;base64,${one.picture}`;
    image.alt = one.part ? `Mean map: most evidence lies ${one.part[0]}` : "";
    const text = one.count ? `${words(one.count, `${name} photo`)}; densest ninth: ${one.part[0]}, ${percent(one.part[1], 0)}` : `no ${name} photo was explained`;
    figure.append(one.count ? image : make("div", "none", "no map"), make("figcaption", "", text));
    return figure;
  }));
  at("highest").textContent = `${percent(about.highest)} of the evidence in a cell`;
  preparePairs();
  prepareFilters();
  at("failures").hidden = !about.failures.length;
  at("failures").querySelector("ul").replaceChildren(...about.failures.map((one) => make("li", "", `${one.photo}: ${one.error}`)));
  at("meanings").replaceChildren(...MEANINGS().map(([name, text]) => pairOf(name, text)));
}
function preparePairs() {
  const ofPair = pairs.map(() => []);
  for (const row of rows) ofPair[row.pair].push(row);
  at("pairs").tBodies[0].replaceChildren(...pairs.map((pair, number) => {
    const line = make("tr"), name = make("td"), explained = ofPair[number];
    line.hidden = number >= FIRST_PAIRS;
    if (explained.length) {
      const button = make("button", "", pair.true_name);
      button.type = "button";
      button.setAttribute("aria-label", `Show the photos of ${pair.true_name} taken for ${pair.predicted_name}`);
      button.onclick = () => choosePair(number);
      name.append(button);
    } else name.textContent = pair.true_name;
    const count = (test) => explained.length ? explained.filter(test).length : "";
    line.append(name, ...[pair.predicted_name, pair.count, explained.length, count((row) => row.without?.true_wins), count((row) => row.flags.length)].map((text) => make("td", "", text)));
    return line;
  }));
  at("all-pairs").hidden = pairs.length <= FIRST_PAIRS;
  at("all-pairs").textContent = `Show all ${pairs.length} pairs`;
  at("all-pairs").onclick = () => {
    for (const line of at("pairs").tBodies[0].rows) line.hidden = false;
    at("all-pairs").hidden = true;
    at("pairs-box").focus();
  };
  at("pair").append(...pairs.flatMap((pair, number) => ofPair[number].length ? [new Option(`${pair.true_name} taken for ${pair.predicted_name} (${ofPair[number].length})`, number)] : []));
}
function prepareFilters() {
  const choices = [...Object.keys(FLAGS).map((flag) => [flag, FLAGS[flag](null), rows.filter((row) => row.flags.includes(flag)).length]),
    ["none", "no flag", rows.length - flagged], ["wins", "true class wins", winning]];
  for (const [flag, text, count] of choices) {
    if (!count) continue;
    const label = make("label", "tick"), box = make("input");
    Object.assign(box, { type: "checkbox", value: flag });
    label.append(box, `${text} (${count})`);
    at("flags").append(label);
  }
}
const MEANINGS = () => [
  ["Speaks for", `The maps of both classes are from the same passes of the model. Colour shows evidence for the class, from 0 to the map's own maximum.`],
  ["Contrast", "What speaks for one class rather than the other: max(0, a / sum(a) - b / sum(b)), divided by its maximum, with the maps a and b of the two classes. If nearly all evidence is in common, the contrast magnifies small differences."],
  ["Evidence in common", "The sum of the minimum of both maps, each divided by its sum. At 100 % both classes use the same places."],
  ["Top region", "The pixels where the predicted class's map has at least half of its maximum. They are replaced by 0 in the preprocessed input, as in the deletion metric. The true class wins if it is then the most probable of all classes."],
  ["Densest ninth", "The photo is divided into three rows and three columns. The densest ninth has the largest share of the predicted class's map; a constant map has 11 %."],
  ["Mean maps", `Each map is brought to a grid of 16 x 16 cells and divided by its sum, so that each photo counts alike. What preprocessing cut off counts as 0. At most ${about.most_correct} correctly classified photos are explained.`],
  ["Explained photos", `At most ${about.most} misclassified photos are explained: those whose predicted class is furthest ahead of the true class.`],
  ...Object.entries(about.flags).map(([flag, text]) => [`Flag: ${FLAGS[flag](null)}`, `${text[0].toUpperCase()}${text.slice(1)}.`]),
];
at("controls").addEventListener("submit", (event) => event.preventDefault());
at("controls").addEventListener("input", update);
at("controls").addEventListener("reset", () => setTimeout(update));
addEventListener("beforeprint", () => {
  near.disconnect();
  for (const number of chosen) show([...cards.get(number).querySelectorAll("img")], number);
  at("help").open = true;
});
prepare();
update();
