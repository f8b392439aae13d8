// What both pages need of the document.

export const $ = (id) => document.getElementById(id);

// An element: el("td", {className: "number"}, "12"); text is always text, never markup.
export function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// A table that phones show as blocks, each cell under its head: the roles keep it a table there.
export function table(heads, rows) {
  const role = (node, name) => { node.setAttribute("role", name); return node; };
  const cellOf = (cell, index) => {
    const td = role(el("td", {}, cell), "cell");
    td.dataset.head = heads[index];
    return td;
  };
  return role(el("table", { className: "stack" },
    role(el("thead", {}, role(el("tr", {},
      ...heads.map((head) => role(el("th", { scope: "col" }, head), "columnheader"))), "row")), "rowgroup"),
    role(el("tbody", {}, ...rows.map((cells) => role(el("tr", {}, ...cells.map(cellOf)), "row"))), "rowgroup")), "table");
}

export const format = (value, digits) => (value === null ? "–" : value.toFixed(digits));

// Three significant digits of what may be small.
export const small = (value) => (value === null ? "–" : value >= 0.1 ? value.toFixed(2) : Number(value.toPrecision(2)).toString());

export function save(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Many buttons as one stop of the tab key: arrows go from one to another.
export function roving(container) {
  const buttons = () => [...container.querySelectorAll("button")];
  const stop = (chosen) => { for (const button of buttons()) button.tabIndex = button === chosen ? 0 : -1; };
  stop(buttons()[0]);
  container.onfocusin = (event) => { if (event.target.tagName === "BUTTON") stop(event.target); };
  container.onkeydown = (event) => {
    const all = buttons();
    const at = all.indexOf(document.activeElement);
    const columns = Math.max(1, all.filter((button) => button.offsetTop === all[0].offsetTop).length);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: all.length - 1 - at };
    if (at < 0 || !(event.key in steps)) return;
    event.preventDefault();
    all[Math.min(all.length - 1, Math.max(0, at + steps[event.key]))].focus();
  };
}

// Buttons with pictures: `items` of {url, text}, `chosen` called with the place of one.
export function gallery(container, items, chosen) {
  container.replaceChildren(...items.map(({ url, text }, index) => {
    const button = el("button", { type: "button", title: text }, el("img", { src: url, alt: text }));
    button.onclick = () => {
      for (const other of document.querySelectorAll(".samples [aria-pressed]")) other.removeAttribute("aria-pressed");
      button.setAttribute("aria-pressed", "true");
      chosen(index);
    };
    return button;
  }));
  roving(container);
}
