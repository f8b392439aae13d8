// The API's page: openapi.json as text, and a form for each operation to try it.

import { ask } from "./api.js";
import { $, el, table } from "./dom.js";
import { describeNpy } from "./npy.js";

let api;

async function start() {
  const response = await ask("openapi.json");
  if (!response.ok) throw new Error(`openapi.json cannot be read (HTTP ${response.status})`);
  api = await response.json();
  $("version").append(el("span", {}, `version ${api.info.version}`));
  $("description").append(...prose(api.info.description ?? ""));
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "other";
      groups.set(tag, [...(groups.get(tag) ?? []), operationBox(path, method, operation)]);
    }
  }
  for (const [tag, boxes] of groups) $("operations").append(el("h2", {}, capital(tag)), ...boxes);
  for (const [name, schema] of Object.entries(api.components.schemas)) $("schemas").append(schemaBox(name, schema));
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.setAttribute("open", "");
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// Text with `code` in backticks.
function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));
}

function operationBox(path, method, operation) {
  const inside = el("div", { className: "inside" });
  const box = el("details", { id: operation.operationId ?? `${method}${path}` },
    el("summary", {},
      el("span", { className: `method ${method}` }, method.toUpperCase()),
      el("code", {}, path),
      el("span", {}, operation.summary ?? "")),
    inside);
  box.ontoggle = () => {
    if (box.open && !inside.hasChildNodes()) inside.append(...contents(path, method, operation));
  };
  return box;
}

function contents(path, method, operation) {
  const nodes = (operation.description ?? "").split("\n\n").filter(Boolean).map((text) => el("p", {}, ...prose(text)));
  if (operation.parameters?.length) nodes.push(el("h3", {}, "Parameters"), parameterTable(operation.parameters));
  nodes.push(el("h3", {}, "Try it"), form(path, method, operation));
  nodes.push(el("h3", {}, "Answers"), answerTable(operation.responses));
  return nodes;
}

function parameterTable(parameters) {
  return table(["name", "in", "type", "what"], parameters.map((p) => [
    el("code", {}, p.name), p.in, typeOf(p.schema), p.description ?? "",
  ]));
}

function answerTable(responses) {
  return table(["status", "as", "what"], Object.entries(responses).map(([status, r]) => [
    el("span", { className: "status-code" }, status),
    Object.entries(r.content ?? {}).map(([type, { schema }]) => (schema?.$ref ? `${type}: ${typeOf(schema)}` : type)).join(", "),
    r.description,
  ]));
}

// Text that may be wider than the screen: the keyboard can move it.
const block = (text) => el("pre", { tabIndex: 0 }, text);

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  const either = schema.anyOf ?? schema.oneOf;
  if (either) return either.map(typeOf).filter((type) => type !== "null").join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items) || "anything"}`;
  const bounds = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"]]
    .filter(([name]) => schema[name] !== undefined && Math.abs(schema[name]) < 2 ** 53)
    .map(([name, sign]) => `${sign} ${schema[name]}`);
  return [schema.type ?? "anything", ...bounds].join(" ");
}

function schemaBox(name, schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([field, value]) => [
    el("code", {}, field), typeOf(value),
    [value.description ?? "", value.default !== undefined ? `Default ${JSON.stringify(value.default)}.` : ""].filter(Boolean).join(" "),
  ]);
  return el("details", { id: `schema-${name}` }, el("summary", {}, el("code", {}, name)),
    el("div", { className: "inside" }, el("p", {}, ...prose(schema.description ?? "")), table(["field", "type", "what"], rows)));
}

// ------------------------------------------------------------------ trying it

function form(path, method, operation) {
  const node = el("form", { className: "try" });
  const fields = (operation.parameters ?? []).map((parameter) => field(parameter));
  const body = operation.requestBody ? bodyEditor(operation) : null;
  const accepts = Object.keys(operation.responses["200"]?.content ?? {});
  const accept = el("select", {}, ...accepts.map((type) => el("option", {}, type)));
  const output = el("div", { className: "output" });
  output.setAttribute("aria-live", "polite");
  const shown = fields.filter(({ parameter }) => parameter.in === "path" || !body);
  const beside = fields.filter((one) => !shown.includes(one));
  if (shown.length) node.append(el("div", { className: "controls" }, ...shown.map((one) => one.label)));
  if (body) node.append(body.node);
  if (beside.length) {
    node.append(el("details", {}, el("summary", {}, "Query parameters and headers"),
      el("div", { className: "inside controls" }, ...beside.map((one) => one.label))));
  }
  node.append(el("div", { className: "row" },
    ...(accepts.length > 1 ? [el("label", { className: "inline" }, "Accept ", accept)] : []),
    el("button", { className: "primary", type: "submit" }, "Send")), output);
  node.onsubmit = async (event) => {
    event.preventDefault();
    const request = compose(path, method, fields, body, accept.value);
    output.replaceChildren(el("p", { className: "status" }, "…"));
    try {
      const started = performance.now();
      const response = await ask(request.url, request.init);
      output.replaceChildren(...(await shownResponse(response, performance.now() - started)), ...curl(request));
    } catch (error) {
      output.replaceChildren(el("p", { className: "error" }, `No answer: ${error.message}`));
    }
  };
  return node;
}

function field(parameter) {
  const input = el("input", { type: "text", name: parameter.name, required: Boolean(parameter.required), value: parameter.example ?? "" });
  return { parameter, input, label: el("label", {}, parameter.name, input) };
}

function bodyEditor(operation) {
  const content = operation.requestBody.content;
  const types = Object.keys(content);
  const type = el("select", {}, ...types.map((name) => el("option", {}, name)));
  const example = content["application/json"]?.example;
  const text = el("textarea", { value: example ? JSON.stringify(example, null, 1) : "", spellcheck: false });
  text.setAttribute("aria-label", "JSON body");
  const file = el("input", { type: "file", hidden: true });
  file.setAttribute("aria-label", "File to send");
  type.onchange = () => {
    const json = type.value === "application/json";
    text.hidden = !json;
    file.hidden = json;
    file.multiple = type.value === "multipart/form-data";
  };
  const node = el("div", {}, el("label", { className: "inline" }, "Body as ", type), text, file);
  return { node, type, text, file };
}

function compose(path, method, fields, body, accept) {
  const query = new URLSearchParams();
  const headers = accept ? { accept } : {};
  let url = path.slice(1); // relative to the page: the service may stand below a prefix
  for (const { parameter, input } of fields) {
    if (input.value === "") continue;
    if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (parameter.in === "header") headers[parameter.name] = input.value;
    else query.set(parameter.name, input.value);
  }
  if (query.size) url += `?${query}`;
  const init = { method: method.toUpperCase(), headers };
  if (body) Object.assign(init, { body: payload(body, headers) });
  return { url, init, body };
}

function payload({ type, text, file }, headers) {
  if (type.value === "multipart/form-data") {
    const data = new FormData(); // the browser writes the content type, with its boundary
    for (const one of file.files) data.append("files", one);
    return data;
  }
  headers["content-type"] = type.value;
  return type.value === "application/json" ? text.value : file.files[0];
}

async function shownResponse(response, milliseconds) {
  const kind = (response.headers.get("content-type") ?? "").split(";")[0];
  const nodes = [el("p", {}, el("span", { className: "status-code" }, `${response.status} `), `${kind}, ${milliseconds.toFixed(1)} ms`)];
  const ours = [...response.headers].filter(([name]) => name.startsWith("x-")).map(([name, value]) => `${name}: ${value}`);
  if (ours.length) nodes.push(block(ours.join("\n")));
  if (kind === "image/png") {
    const picture = el("img", { src: URL.createObjectURL(await response.blob()), alt: "The answer: a picture" });
    return [...nodes, picture];
  }
  if (kind === "application/x-npy") {
    const blob = await response.blob();
    const link = el("a", { href: URL.createObjectURL(blob), download: "answer.npy" }, "Save answer.npy");
    return [...nodes, el("p", {}, `${describeNpy(await blob.arrayBuffer())}, ${blob.size} bytes. `, link)];
  }
  const text = await response.text();
  if (!kind.endsWith("json")) return [...nodes, block(text)];
  const data = JSON.parse(text, exact);
  const pictures = (data.images ?? []).map((image, index) => el("img", { src: `data:image/png;base64,${image}`, alt: `Image ${index}` }));
  return [...nodes, el("div", { className: "samples" }, ...pictures), block(JSON.stringify(data, shortened, 1))];
}

// Seeds go beyond what JavaScript's numbers hold: such are shown as they were written.
const exact = (_, value, context) => (Number.isInteger(value) && !Number.isSafeInteger(value) && JSON.rawJSON && context?.source
  ? JSON.rawJSON(context.source) : value);

const shortened = (_, value) => (typeof value === "string" && value.length > 200 ? `${value.slice(0, 60)}… (${value.length} characters)` : value);

// The same request for a shell; quotes inside the body are written as the shell wants them.
function curl({ url, init, body }) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const parts = ["curl", ...(init.method === "GET" ? [] : ["-X", init.method]), quote(new URL(url, document.baseURI).href)];
  for (const [name, value] of Object.entries(init.headers)) parts.push("-H", quote(`${name}: ${value}`));
  if (body?.type.value === "application/json") parts.push("--data-raw", quote(body.text.value));
  else if (body?.type.value === "multipart/form-data") parts.push("-F", quote("files=@image.png"));
  else if (body) parts.push("--data-binary", "@file");
  return [el("h3", {}, "The same with curl"), block(parts.join(" "))];
}

start().catch((error) => {
  $("error").textContent = error.message;
  $("error").hidden = false;
});
