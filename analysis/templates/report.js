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
// Everything that is folded is printed.
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
