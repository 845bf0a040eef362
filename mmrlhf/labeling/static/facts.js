// Type what is in the picture; the server makes typed facts of a sentence.
export function facts(form, { saveDraft, say, send, save }) {
  const list = document.getElementById("facts");
  const template = document.getElementById("fact");
  const sentence = document.getElementById("sentence");
  const kind = document.getElementById("kind");
  const names = Object.fromEntries([...kind.options].map((option) => [option.value, option.textContent]));
  let entries = [];
  try { entries = JSON.parse(form.elements.facts.value); } catch { /* no facts */ }

  function keep() {
    form.elements.facts.value = JSON.stringify(entries);
    saveDraft();
    draw();
  }
  function draw() {
    list.replaceChildren(...entries.map((entry) => {
      const item = template.content.cloneNode(true).firstElementChild;
      item.querySelector(".kind").textContent = names[entry.kind];
      item.querySelector(".fact").textContent = entry.text;
      const remove = item.querySelector("button");
      remove.setAttribute("aria-label", `Remove ${entry.text}`);
      remove.addEventListener("click", () => {
        entries = entries.filter((other) => other !== entry);
        keep();
        sentence.focus();
      });
      return item;
    }));
  }
  async function add() {
    const text = sentence.value.trim();
    if (!text) return;
    let added = [{ kind: kind.value, text }];
    if (!kind.value) {
      const body = new FormData();
      body.set("form_key", form.elements.form_key.value);
      body.set("sentence", text);
      try {
        added = (await send({ action: "/facts" }, body)).facts;
      } catch (error) {
        return say(error instanceof TypeError ? "The server does not answer: add it again." : error.message);
      }
    }
    for (const fact of added) {
      if (!entries.some((entry) => entry.kind === fact.kind && entry.text === fact.text)) entries.push(fact);
    }
    sentence.value = "";
    keep();
  }
  document.getElementById("add").addEventListener("click", add);
  sentence.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      if (event.repeat) return;
      if (sentence.value.trim()) add(); else save();
    } else if (event.key === "Backspace" && !event.repeat && !sentence.value && entries.length) {
      event.preventDefault();
      entries.pop();
      keep();
    } else if (event.key === "Escape") sentence.blur();
  });
  draw();
  return {
    keys: { e: () => sentence.focus(), k: () => kind.focus() },
    problem() {
      if (sentence.value.trim()) return "Add what you have typed first, with Enter.";
      return entries.length ? "" : "Type a fact, or skip the task.";
    },
  };
}
