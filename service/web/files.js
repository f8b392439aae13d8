// Many files: a table of verdicts, sorted, and its CSV.

import { post } from "./api.js";
import { $, el, format, roving, save, small, table } from "./dom.js";
import { alpha, notesOf, verdictOf } from "./look.js";
import { asked } from "./state.js";

const AT_ONCE = 3; // requests; each may be a photo of megabytes
const SHOWN_MS = 2000; // between two tables of those that have come
const HEADS = ["image", "file", "verdict", "p-value", "bits/dim", "note"];

let rows = []; // {file, url, result, images} or {file, url, error}; images: of the calibration
let running = null;
let shown = 0; // when the table was

export async function scoreFiles(files) {
  running?.abort();
  const { signal } = running = new AbortController();
  for (const { url } of rows) URL.revokeObjectURL(url);
  rows = [];
  $("stop").hidden = false;
  showRows();
  const waiting = [...files];
  Object.assign($("progress"), { max: waiting.length, value: 0, hidden: false });
  // One model, K and alpha for all of them, whatever is chosen meanwhile.
  const fields = asked({ importance_samples: Number($("k").value), alpha: alpha(), resize: true, convert: true });
  const worker = async () => {
    while (waiting.length && !signal.aborted) {
      const file = waiting.shift();
      const row = await scoreOne(file, fields, signal);
      if (!row || signal.aborted) return;
      rows.push(row);
      if (Date.now() > shown + SHOWN_MS && !$("table").contains(document.activeElement)) showRows();
      $("progress").value = rows.length;
      $("files-status").textContent = `${rows.length} of ${files.length}`;
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  if (running.signal === signal) done();
}

function done() {
  $("progress").hidden = true;
  $("stop").hidden = true;
  showRows();
}

export function stop() {
  running?.abort();
  done();
}

async function scoreOne(file, fields, signal) {
  const row = { file, url: URL.createObjectURL(file), model: fields.model, importance_samples: fields.importance_samples };
  try {
    const { data } = await post("v1/score", fields, { files: [file], signal });
    return { ...row, result: data.results[0], images: data.calibration?.images, notes: data.notes, version: data.version };
  } catch (error) {
    if (signal.aborted) return null;
    return { ...row, error: error.message };
  }
}

const verdict = ({ result, images }) => verdictOf(result, alpha(), images);
const wordOf = (row) => (row.result ? { true: "anomalous", false: "not anomalous", null: "no decision" }[verdict(row)] : "not read");

let look = () => {};
export function onRow(chosen) { look = chosen; }

// At another alpha the words change, and no question is asked.
export function showRows() {
  shown = Date.now();
  rows.sort((a, b) => (a.result?.p_value ?? 2) - (b.result?.p_value ?? 2));
  $("save-csv").disabled = rows.length === 0 || !$("stop").hidden; // not of a part
  if (!rows.length) return $("table").replaceChildren();
  const all = rows.flatMap((row) => (row.error ? [] : notesOf(row)));
  const shared = [...new Set(all.filter((note, place) => all.indexOf(note) !== place))]; // said once, below
  const own = (row) => notesOf(row).filter((note) => !shared.includes(note)).join("; ");
  const made = table(HEADS, rows.map((row) => {
    return [row.result ? thumbnail(row) : "", row.file.name, wordOf(row), row.result ? small(row.result.p_value) : "–",
      row.result ? format(row.result.bits_per_dim, 3) : "–", row.error ?? own(row)];
  }));
  for (const [index, line] of [...made.tBodies[0].rows].entries()) line.dataset.verdict = wordOf(rows[index]);
  $("table").replaceChildren(made, el("ul", { className: "notes" }, ...shared.map((note) => el("li", {}, note))));
  roving(made);
  const counts = ["anomalous", "not anomalous", "no decision", "not read"]
    .map((word) => [word, rows.filter((row) => wordOf(row) === word).length]).filter(([, count]) => count);
  $("files-status").textContent = `${rows.length} files by ${rows[0].model}: ${counts.map(([word, count]) => `${count} ${word}`).join(", ")}, at p ≤ ${small(alpha())}`;
}

function thumbnail({ file, url }) {
  const button = el("button", { type: "button", title: `Look at ${file.name}` }, el("img", { src: url, alt: `Look at ${file.name}` }));
  button.onclick = () => look(file);
  return button;
}

// The files that were dropped, and the images in folders that were.
export async function dropped(items) {
  const files = [...items].filter((item) => item.kind === "file"); // the list is empty once this waits
  const found = files.map((item) => { const entry = item.webkitGetAsEntry(); return entry?.isDirectory ? entry : item.getAsFile(); });
  const images = (await Promise.all(found.map((each) => (each.isDirectory ? imagesIn(each) : each)))).flat();
  if (!images.length) throw Object.assign(new Error("No PNG, JPEG or WebP files are in what was dropped."), { isOfFile: true });
  return images;
}

const promised = (of, name) => new Promise((resolve, reject) => { of[name](resolve, reject); });

async function imagesIn(entry) {
  if (entry.isFile) return /\.(png|jpe?g|jfif|webp)$/i.test(entry.name) ? [await promised(entry, "file")] : [];
  const reader = entry.createReader();
  const inside = [];
  for (let part; (part = await promised(reader, "readEntries")).length;) inside.push(...part); // in parts of 100
  return (await Promise.all(inside.map(imagesIn))).flat();
}

const COLUMNS = ["p_value", "log_likelihood_nats", "bits_per_dim", "elbo_nats", "standard_error_nats", "effective_sample_size", "status", "altered"];

// A cell that begins so would be computed by a spreadsheet program; a name with "./" before it is the same file's.
const FORMULA = /^[=+\-@\t\r\n]/;
const text = (value) => (FORMULA.test(value ?? "") ? `./${value}` : value ?? "");

export function saveCsv() {
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const lines = rows.map((row) => [
    text(row.file.name), row.result ? String(verdict(row) ?? "") : "", alpha(),
    ...COLUMNS.map((name) => row.result?.[name] ?? ""), row.model, row.version ?? "", row.importance_samples, text(row.error),
  ]);
  const heads = ["file", "anomalous", "alpha", ...COLUMNS, "model", "version", "importance_samples", "error"];
  const csv = [heads, ...lines].map((line) => line.map(String).map(cell).join(",")).join("\r\n");
  save(new Blob([`${csv}\r\n`], { type: "text/csv" }), `${rows[0].model}-scores.csv`);
}
