"use strict";
// The client table: sort by a heading, filter by words. The address keeps both:
// #sort=accuracy&order=descending&filter=unseen
(() => {
  const table = document.getElementById("clients");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const headings = Array.from(table.tHead.rows[0].cells);
  const filter = document.getElementById("filter");
  const count = document.getElementById("count");
  const state = { sort: "", order: "ascending", filter: "" };

  const compare = (column, numeric, direction) => (one, other) => {
    const [a, b] = [one, other].map((row) => row.cells[column].dataset.value);
    // What was not measured comes last, whichever way.
    if (a === "" || b === "") return (a === "") - (b === "");
    return direction * (numeric ? Number(a) - Number(b) : a.localeCompare(b));
  };

  const show = () => {
    const column = headings.findIndex((heading) => heading.dataset.key === state.sort);
    headings.forEach((heading, index) => {
      heading.setAttribute("aria-sort", index === column ? state.order : "none");
    });
    const sorted = rows.slice();
    if (column >= 0) {
      const numeric = "numeric" in headings[column].dataset;
      sorted.sort(compare(column, numeric, state.order === "descending" ? -1 : 1));
    }
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = sorted.filter((row) => {
      const text = Array.from(row.cells, (cell) => cell.textContent).join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    body.replaceChildren(...matching);
    count.textContent = matching.length === rows.length
      ? `${rows.length} rows`
      : `${matching.length} of ${rows.length} rows`;
  };

  const remember = () => {
    const given = Object.entries(state).filter(([, value]) => value);
    history.replaceState(null, "", `#${new URLSearchParams(given)}`);
    show();
  };

  headings.forEach((heading) => {
    heading.querySelector("button").addEventListener("click", () => {
      const again = state.sort === heading.dataset.key;
      // Figures are wanted from the top first, names from A.
      const first = "numeric" in heading.dataset ? "descending" : "ascending";
      const other = { ascending: "descending", descending: "ascending" };
      state.order = again ? other[state.order] : first;
      state.sort = heading.dataset.key;
      remember();
    });
  });
  filter.addEventListener("input", () => {
    state.filter = filter.value;
    remember();
  });

  const address = new URLSearchParams(location.hash.slice(1));
  state.sort = address.get("sort") ?? "";
  state.order = address.get("order") === "descending" ? "descending" : "ascending";
  state.filter = filter.value = address.get("filter") ?? "";
  show();
})();
