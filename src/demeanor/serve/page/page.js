// The page: one message, two replies side by side, one untouched and one under the controls.
"use strict";
const byId = (id) => document.getElementById(id);
let model = null;
let running = null;
const doses = new Map();
let last = null; // what both replies were to, and under which controls

function headers(more = {}) {
  const key = byId("key").value.trim();
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

function say(text, wrong = false) {
  byId("state").textContent = text;
  byId("state").classList.toggle("wrong", wrong);
}

async function told(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error ? body.error.message : `The server answered ${response.status}.`);
}

async function connect() {
  const models = await (await told(await fetch("/v1/models", { headers: headers() }))).json();
  model = models.data[0].id;
  byId("model").textContent = model;
  await list();
  say("Ready.");
}

async function list() {
  const controls = (await (await told(await fetch("/v1/controls", { headers: headers() }))).json()).data;
  byId("no-controls").hidden = controls.length > 0;
  byId("controls").replaceChildren(...controls.map((control) => {
    const row = byId("slider").content.firstElementChild.cloneNode(true);
    const [label, range, output, about] = row.children;
    if (!doses.has(control.id)) doses.set(control.id, control.dose);
    range.id = `dose-${control.id}`;
    label.htmlFor = range.id;
    label.textContent = control.id;
    range.value = doses.get(control.id);
    about.textContent = [control.does, ...control.measured].join(". ");
    const show = () => {
      doses.set(control.id, Number(range.value));
      output.textContent = Number(range.value).toFixed(2);
      range.setAttribute("aria-valuetext", `dose ${range.value}`);
    };
    range.addEventListener("input", show);
    show();
    return row;
  }));
  byId("along").replaceChildren(...controls.map((control) => new Option(control.id, control.id)));
  for (const name of doses.keys()) if (!controls.some((control) => control.id === name)) doses.delete(name);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function facts(list, receipt, tokens, seconds) {
  const rows = [["Tokens", `${tokens} in ${seconds.toFixed(1)} s`]];
  const controls = receipt.controls.map((one) => `${one.name} × ${one.dose} (${one.hash})`);
  rows.push(["Controls", controls.join(", ") || "none"]);
  for (const gate of receipt.gates) rows.push([gate.fired ? "Gate open" : "Gate shut", gate.gate]);
  if (receipt.redone !== undefined) rows.push(["Done again", receipt.redone ? "yes, the first reply refused" : "no"]);
  const changed = receipt.changed;
  if (changed) rows.push(["Changed", `${changed.prompt_tokens} prompt tokens, ${changed.reply_tokens} reply tokens, at ${changed.places} places`]);
  for (const one of receipt.moderation) rows.push([one.action === "block" ? "Blocked" : "Noted", `${one.reason} (${one.rule})`]);
  list.replaceChildren(...rows.flatMap(([name, text]) => {
    const term = document.createElement("dt");
    const value = document.createElement("dd");
    term.textContent = name;
    value.textContent = text;
    return [term, value];
  }));
}

async function reply(side, controls, signal) {
  const box = byId(side);
  const list = byId(`${side}-facts`);
  box.textContent = "";
  box.classList.remove("blocked");
  box.classList.add("running");
  list.replaceChildren();
  const begun = performance.now();
  let pieces = 0;
  const redo = byId("redo").checked && Object.keys(controls).length > 0;
  try {
    const response = await told(await fetch("/v1/chat/completions", {
      method: "POST", signal, headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify({
        model, messages: [{ role: "user", content: byId("message").value }], stream: true, stream_options: { include_usage: true }, receipt: true, redo, controls,
        temperature: Number(byId("temperature").value), max_tokens: Number(byId("longest").value),
      }),
    }));
    let receipt = null;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.receipt) receipt = event.receipt;
      if (event.usage) pieces = event.usage.completion_tokens;
      for (const choice of event.choices) {
        if (choice.finish_reason === "content_filter") {
          box.textContent = "";
          box.classList.add("blocked");
        }
        box.textContent += choice.delta.content || "";
      }
    }
    if (!box.classList.contains("blocked")) last[side] = { reply: box.textContent, controls: receipt && receipt.redone === false ? {} : controls };
    if (receipt) facts(list, receipt, pieces, (performance.now() - begun) / 1000);
  } catch (error) {
    if (error.name !== "AbortError") {
      box.textContent = error.message;
      box.classList.add("blocked");
    }
  } finally {
    box.classList.remove("running");
  }
}

async function ask(event) {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  byId("send").disabled = true;
  byId("stop").disabled = false;
  say("Generating …");
  const controls = Object.fromEntries([...doses].filter(([, dose]) => dose !== 0));
  last = { message: byId("message").value };
  byId("project-send").disabled = true;
  for (const side of ["plain", "steered"]) byId(`${side}-projections`).replaceChildren();
  await Promise.all([reply("plain", {}, running.signal), reply("steered", controls, running.signal)]);
  say(running.signal.aborted ? "Stopped." : "Done.");
  running = null;
  byId("send").disabled = false;
  byId("stop").disabled = true;
  byId("project-send").disabled = !(last.plain || last.steered);
}

// A row per layer, the last on top, and a column per token; warm is along the direction, cool against it.
function picture(seen, most) {
  const table = document.createElement("table");
  let far = [0, 0];
  seen.values.forEach((row, layer) => row.forEach((value, token) => {
    if (Math.abs(value) > Math.abs(seen.values[far[0]][far[1]])) far = [layer, token];
  }));
  table.createCaption().textContent = `Furthest from 0: ${seen.values[far[0]][far[1]].toFixed(2)} at layer ${far[0]}, token “${seen.tokens[far[1]].trim()}”.`;
  for (let layer = seen.values.length - 1; layer >= 0; layer -= 1) {
    const row = table.insertRow();
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = layer;
    row.append(name);
    seen.values[layer].forEach((value, token) => {
      const cell = row.insertCell();
      const share = Math.round((100 * Math.abs(value)) / most);
      cell.style.background = `color-mix(in srgb, var(${value > 0 ? "--along" : "--against"}) ${share}%, transparent)`;
      cell.title = `layer ${layer}, ${seen.tokens[token].trim()}: ${value.toFixed(2)}`;
      cell.classList.toggle("reply-begins", token === seen.prompt_tokens);
    });
  }
  const foot = table.createTFoot().insertRow();
  foot.append(document.createElement("th"));
  for (const token of seen.tokens) {
    const name = document.createElement("th");
    name.scope = "col";
    name.append(Object.assign(document.createElement("span"), { textContent: token.trim() }));
    foot.append(name);
  }
  return table;
}

async function project(event) {
  event.preventDefault();
  const along = byId("along").value;
  try {
    const seen = {};
    for (const side of ["plain", "steered"].filter((one) => last[one])) {
      const response = await told(await fetch(`/v1/controls/${encodeURIComponent(along)}/projections`, {
        method: "POST", headers: headers({ "Content-Type": "application/json" }),
        body: JSON.stringify({ messages: [{ role: "user", content: last.message }], ...last[side] }),
      }));
      seen[side] = await response.json();
    }
    let most = 0; // one scale for both
    for (const one of Object.values(seen)) for (const row of one.values) for (const value of row) most = Math.max(most, Math.abs(value));
    for (const side in seen) byId(`${side}-projections`).replaceChildren(picture(seen[side], most || 1));
    say(`Shown along ${along}.`);
  } catch (error) {
    say(error.message, true);
  }
}

async function upload(event) {
  event.preventDefault();
  const name = byId("upload-name").value;
  try {
    await told(await fetch(`/v1/controls/${encodeURIComponent(name)}`, { method: "PUT", headers: headers(), body: byId("upload-file").files[0] }));
    await list();
    byId("upload").reset();
    say(`The control ${name} is there.`);
  } catch (error) {
    say(error.message, true);
  }
}

byId("ask").addEventListener("submit", ask);
byId("upload").addEventListener("submit", upload);
byId("project").addEventListener("submit", project);
byId("stop").addEventListener("click", () => running && running.abort());
byId("key").addEventListener("change", () => connect().catch((error) => say(error.message, true)));
byId("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
});
connect().catch((error) => say(error.message, true));
