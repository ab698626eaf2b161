"use strict";
// What the pages share. The script of the page follows, and has step(by): to the next photo of the large view; and
// bring(card): give a card near the screen its pictures.
const at = (id) => document.getElementById(id);
const list = at("list"), large = at("large");
const words = (count, one, many = one + "s") => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};
function pairOf(name, text) {
  const pair = make("div");
  pair.append(make("dt", "", name), make("dd", "", text));
  return pair;
}

// ---- Pictures: a block of base64 for each photo, below the script; it may not have arrived yet ----
const waiting = new Map();
function show(images, number, places = images.map((_, place) => place)) {
  let found = null;
  try {
    found = JSON.parse(at(`p${number}`).textContent);
  } catch (fault) {  // its block, or the end of it, has not arrived
    waiting.set(images[0], [images, number, places]);
    return;
  }
  waiting.delete(images[0]);
  images.forEach((image, place) => { if (found[places[place]]) image.src = `data:image/jpeg;base64,${found[places[place]]}`; });
}
const showWaiting = () => { for (const one of [...waiting.values()]) show(...one); };
const timer = setInterval(showWaiting, 100);
addEventListener("DOMContentLoaded", () => { clearInterval(timer); showWaiting(); });
const near = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    const images = [...target.querySelectorAll("img")];
    if (!isIntersecting) {  // many photos do not stay in memory
      waiting.delete(images[0]);
      for (const image of images) image.removeAttribute("src");
    } else if (!images[0].hasAttribute("src")) bring(target);
  }
}, { rootMargin: "900px 0px" });

// ---- The large view, and arrows that move from photo to photo ----
large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
large.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    event.preventDefault();
    step(event.key === "ArrowLeft" ? -1 : 1);
  }
});
at("previous").onclick = () => step(-1);
at("next").onclick = () => step(1);
at("close").onclick = () => large.close();
function moveByArrows() {  // in a list with several cards in a row
  list.addEventListener("keydown", (event) => {
    const buttons = [...list.querySelectorAll(".open")], here = buttons.indexOf(event.target);
    if (here < 0) return;
    const top = (button) => button.closest("li").offsetTop;
    const first = buttons.findIndex((button) => top(button) === top(event.target));
    let end = here;
    while (end < buttons.length && top(buttons[end]) === top(event.target)) end++;
    const across = end - first;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    if (by === undefined || !buttons[here + by]) return;
    event.preventDefault();
    buttons[here + by].focus();
  });
}

