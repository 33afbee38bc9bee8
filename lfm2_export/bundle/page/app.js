// The page: what is shown, and what is asked of the worker. Text is always set as text, never as markup.
const LIMIT = 256; // tokens of a reply
const LATER = ["runtime/transformers.mjs", "model/preprocessor_config.json"]; // read with the first picture
const $ = (id) => document.getElementById(id);
await keepFiles();
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
let messages = [];
let waiting = []; // pictures for the next message, { id, file }
let sent = []; // of these, those that went with the message under way
let pictures = 0;
let answer = null; // the element being written into
let busy = true;
let loaded = false;

const on = {
  progress({ what, done, all }) {
    $("progress").value = all ? done / all : 0;
    $("status").textContent = `Loading ${what}: ${megabytes(done)} of ${megabytes(all)}`;
  },
  preparing() {
    $("progress").removeAttribute("value");
    $("status").textContent = "Preparing the model…";
  },
  ready({ bundle, described, verifies }) {
    loaded = true;
    $("drafts").parentElement.hidden = !verifies;
    $("pictures").hidden = !bundle.parts;
    $("loading").hidden = true;
    $("title").textContent = bundle.source;
    document.title = `${bundle.source} in the browser`;
    const size = megabytes(bundle.model.bytes);
    const runtime = `onnxruntime-web ${bundle.versions["onnxruntime-web"]}, ${described}`;
    const random = bundle.random_weights ? " · random weights, the replies mean nothing" : "";
    $("facts").textContent = `${bundle.recipe}, ${size} · ${runtime} · nothing you type leaves this machine${random}`;
    keepPage(Object.keys(bundle.files));
    idle();
    $("text").focus();
  },
  piece({ text }) {
    answer.textContent = text;
    follow();
  },
  done({ text, ids, prompt, seconds: [prefill, decode], memory, drafted }) {
    answer.textContent = text;
    answer.classList.remove("writing");
    messages.push({ role: "assistant", content: text });
    const rate = (tokens, time) => (time > 0 ? Math.round(tokens / time) : "–");
    $("speed").textContent =
      `first token after ${prefill.toFixed(2)} s (${prompt} tokens at ${rate(prompt, prefill)} tok/s), ` +
      `${ids.length} decoded at ${rate(ids.length, decode)} tok/s${guessed(drafted, rate)}, weights and state ${megabytes(memory)}`;
    idle();
    $("text").focus();
  },
  parity({ reports, passed, cases, golden, described }) {
    $("verdict").textContent = passed ? "Parity: pass" : "Parity: FAIL";
    $("verdict").className = passed ? "pass" : "fail";
    $("explained").textContent =
      `${described}, against ${golden.runtime}, where this bundle was made. Errors are relative to the largest logit; ` +
      `${golden.max_error} is allowed. A different token counts only where the choice was not that close.`;
    $("cases").replaceChildren(
      ...reports.map((report, at) => {
        const prompt = !report.samePrompt ? "differs" : report.samePixels ? "same tokens" : `pixels off by ${report.pixels.toPrecision(2)}`;
        const verdict = report.passed ? "pass" : "FAIL";
        return tableRow([cases[at], prompt, `${report.same} of ${report.steps}`, report.error.toExponential(1), verdict]);
      }),
    );
    idle();
  },
  problem({ message }) {
    $("loading").hidden = true;
    if ($("parity").open) $("parity").close();
    if (answer?.classList.contains("writing")) {
      answer.remove();
      messages.pop(); // a turn that failed has not taken place
      show(sent);
    }
    say("problem", message);
    if (loaded) idle();
  },
};

worker.onmessage = ({ data }) => on[data.on](data);
worker.onerror = (event) => on.problem({ message: event.message ?? "The model's thread could not start." });
worker.postMessage({ do: "load", device: new URLSearchParams(location.search).get("device") });

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (busy) worker.postMessage({ do: "stop" });
  else if (text) ask(text);
});

$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!busy) $("form").requestSubmit();
  }
});

for (const id of ["picture", "camera"]) {
  $(id).addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = ""; // the same one may be chosen again
  });
}

for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // a browser would leave the page for the picture
    if (kind === "drop") add(event.dataTransfer.files);
  });
}

$("reset").addEventListener("click", () => {
  messages = [];
  show([]);
  $("talk").replaceChildren();
  $("speed").textContent = "";
  $("text").focus();
});

$("check").addEventListener("click", () => {
  occupied();
  $("verdict").textContent = "Checking…";
  $("verdict").className = "";
  $("explained").textContent = "";
  $("cases").replaceChildren();
  $("parity").showModal();
  worker.postMessage({ do: "parity" });
});

/** Let the service worker see every request from now on; where there can be none, nothing is kept. */
async function keepFiles() {
  if (!navigator.serviceWorker) return; // browsers have it only for pages from https or this machine
  try {
    await navigator.serviceWorker.register("keep.js");
    await navigator.serviceWorker.ready;
    if (navigator.serviceWorker.controller) return;
    await new Promise((done) => {
      navigator.serviceWorker.addEventListener("controllerchange", done, { once: true });
      setTimeout(done, 3000); // a reload past the cache is never taken over
    });
  } catch (error) {
    console.info(`Nothing will be kept for the next time: ${error}`);
  }
}

/** What was loaded before the service worker saw it, the page itself; and what is loaded later. */
async function keepPage(names) {
  if (!navigator.serviceWorker?.controller) return;
  const small = names.filter((name) => !name.includes("/") || LATER.includes(name));
  await Promise.allSettled([...small, location.href].map((name) => fetch(name)));
  const { port1, port2 } = new MessageChannel();
  await new Promise((kept) => {
    port1.onmessage = kept;
    navigator.serviceWorker.controller.postMessage("kept?", [port2]);
  });
  document.documentElement.dataset.kept = "true";
}

/** Let files wait for the next message. */
function add(files) {
  if (!loaded || $("pictures").hidden) return;
  show([...waiting, ...[...files].map((file) => ({ id: (pictures += 1), file }))]);
}

/** Let these pictures wait; one goes when it is clicked. */
function show(those) {
  waiting = those;
  $("shown").hidden = !those.length;
  $("shown").replaceChildren(
    ...those.map((each) => {
      const picture = thumbnail(each);
      picture.title = "Leave it out";
      picture.addEventListener("click", () => show(waiting.filter((other) => other !== each)));
      return picture;
    }),
  );
}

function thumbnail({ file }) {
  const picture = document.createElement("img");
  picture.src = URL.createObjectURL(file);
  picture.addEventListener("load", () => URL.revokeObjectURL(picture.src));
  picture.alt = file.name;
  return picture;
}

function ask(text) {
  sent = waiting;
  const parts = sent.map(({ id }) => ({ type: "image", id }));
  messages.push({ role: "user", content: parts.length ? [...parts, { type: "text", text }] : text });
  say("user", text).prepend(...sent.map(thumbnail));
  show([]);
  answer = say("assistant", "");
  answer.classList.add("writing");
  $("text").value = "";
  occupied();
  $("send").disabled = false;
  $("send").textContent = "Stop";
  const shown = sent.map(({ id, file }) => [id, file]);
  worker.postMessage({ do: "reply", messages, shown, limit: LIMIT, drafting: $("drafts").checked });
}

function guessed(drafted, rate) {
  if (!drafted?.drafted) return "";
  const { steps, seconds } = drafted.alone;
  return `${steps ? `, ${rate(steps, seconds)} without` : ""} (accepted ${drafted.accepted} of ${drafted.drafted} drafted)`;
}

function say(kind, text) {
  const turn = document.createElement("p");
  turn.className = `turn ${kind}`;
  turn.textContent = text;
  $("talk").append(turn);
  follow();
  return turn;
}

function follow() {
  $("talk").scrollTop = $("talk").scrollHeight;
}

function tableRow(cells) {
  const row = document.createElement("tr");
  for (const text of cells) row.insertCell().textContent = text;
  row.lastChild.className = cells.at(-1).toLowerCase();
  return row;
}

function occupied() {
  busy = true;
  for (const id of ["send", "reset", "check", "picture", "camera"]) $(id).disabled = true;
}

function idle() {
  busy = false;
  $("send").textContent = "Send";
  for (const id of ["text", "send", "reset", "check", "picture", "camera"]) $(id).disabled = false;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
