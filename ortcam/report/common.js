"use strict";
// What both pages share; the script of the page follows, and has step(by): to the next photo of the large view.
const at = (id) => document.getElementById(id);
const list = at("list"), large = at("large");
const words = (count, one, many = one + "s") => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};

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

