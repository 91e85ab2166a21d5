"use strict";
// Tables that a click on a column's head sorts.

const NUMBER = /^[+\-−]?(\d[\d,]*\.?\d*|\.\d+)(e[+-]?\d+)?\s*(%|±.*|\(.*\))?$/i;

/** The number that a cell begins with; null for an empty cell or a dash; NaN for words. */
function cellNumber(text) {
  if (/^[–—-]?$/.test(text)) return null;
  return NUMBER.test(text) ? parseFloat(text.replace(/,/g, "").replace("−", "-")) : NaN;
}

function sortTable(table, column, ascending, numeric) {
  const key = (row) => row.cells[column].textContent.trim();
  const isEmpty = (text) => cellNumber(text) === null;
  const compare = (a, b) => (numeric ? cellNumber(a) - cellNumber(b) : a.localeCompare(b, undefined, { numeric: true }));
  const rows = [...table.tBodies[0].rows].sort((left, right) => {
    const [a, b] = [key(left), key(right)];
    if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b); // last, whatever the direction
    return ascending ? compare(a, b) : compare(b, a);
  });
  table.tBodies[0].append(...rows);
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    if (index === column) head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  });
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const cells = [...table.tBodies[0].rows].map((row) => row.cells[column]);
    const numeric = cells.every((cell) => !Number.isNaN(cellNumber(cell.textContent.trim())));
    if (numeric) [head, ...cells].forEach((cell) => cell.classList.add("number"));
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () =>
      sortTable(table, column, head.getAttribute("aria-sort") !== "ascending", numeric),
    );
  });
}

document.querySelectorAll(".scroll").forEach((box) => {
  makeSortable(box.querySelector("table"));
  Object.entries({ tabindex: 0, role: "region", "aria-label": "Table" }).forEach(([name, value]) => box.setAttribute(name, value));
});
