"use strict";
// Tables are sorted by a click on a heading (again for the other direction), numbers by their full precision.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if (body.rows.length && body.rows[0].cells[column].classList.contains("number")) heading.classList.add("number");
    const sort = () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      const key = (row) => row.cells[column].dataset.key;
      const text = (row) => row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) =>
        key(a) !== undefined && key(b) !== undefined
          ? Number(key(a)) - Number(key(b)) || 0
          : text(a).localeCompare(text(b), "en", { numeric: true }));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...(down ? rows.reverse() : rows));
    };
    heading.tabIndex = 0;
    heading.title = "Sort";
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}
// Figures fill the window on a click; a second click or Escape closes them.
const large = document.getElementById("large");
const enlarge = (image) => {
  large.firstElementChild.src = image.src;
  large.firstElementChild.alt = image.alt;
  large.showModal();
};
for (const image of document.querySelectorAll("figure img")) {
  image.addEventListener("click", () => enlarge(image));
  image.addEventListener("keydown", (event) => { if (event.key === "Enter") enlarge(image); });
}
large.addEventListener("click", () => large.close());
// A model's page is shown alone while the address leads to it, or to something in it; all else is the report.
const title = document.title;
const turn = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const page = target?.closest("article.model") ?? null;
  for (const open of document.querySelectorAll("article.open")) open.classList.remove("open");
  page?.classList.add("open");
  document.documentElement.classList.toggle("one-model", Boolean(page));
  document.title = page ? `${page.querySelector("h2").textContent} · ${title}` : title;
  for (let place = target?.closest("details"); place; place = place.parentElement.closest("details")) place.open = true;
  if (page === target) scrollTo({ top: 0, behavior: "instant" });
  else target?.scrollIntoView({ behavior: "instant" });
};
addEventListener("hashchange", turn);
if (location.hash) turn();
// Everything that is folded is printed, and figures that nobody has scrolled to.
addEventListener("beforeprint", () => {
  for (const image of document.querySelectorAll("figure img")) image.loading = "eager";
});
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
