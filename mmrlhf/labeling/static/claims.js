// Mark wrong words with a reason and a correction, and judge the claims that were found.
const REASONS = { object: "absent", attribute: "attribute", count: "count", relation: "relation", action: "action" };

export function claims(form, { saveDraft }) {
  const list = form.querySelector(".words");
  const words = [...list.querySelectorAll('[role="option"]')];
  const found = [...form.querySelectorAll(".claim")];
  const corrected = form.elements.corrected;
  const place = document.getElementById("marks");
  const template = document.getElementById("mark");
  let marks = [];
  try { marks = JSON.parse(form.elements.spans.value); } catch { /* no marks */ }
  let cursor = 0, anchor = 0;

  // ---- the corrected answer: the server applies the marks itself, and gets this only if it is edited ----
  let isEdited = false;
  function setEdited(value) {
    isEdited = value;
    corrected.name = isEdited ? "corrected" : "";
  }
  function correction() {
    let text = "", removedAt = [];
    let skipTo = -1;
    for (const node of list.childNodes) {
      const index = node.nodeType === Node.ELEMENT_NODE ? Number(node.id.slice(1)) : null;
      if (index === null) {
        if (skipTo < 0) text += node.textContent;
        continue;
      }
      const mark = marks.find((m) => m.first === index);
      if (mark) {
        skipTo = mark.last;
        const replacement = mark.correction.trim().replace(/\s+/g, " ");
        if (!replacement) removedAt.push(text.length);
        text += replacement;
      } else if (skipTo < 0) text += node.textContent;
      if (index === skipTo) {
        const whole = node.textContent;
        text += whole.slice(whole.replace(/[.,;:!?]+$/, "").length || whole.length);
        skipTo = -1;
      }
    }
    for (const at of removedAt.reverse()) {
      let [before, after] = [text.slice(0, at), text.slice(at)];
      if (/^(?:[.,;:!?\n]|$)/.test(after)) before = before.replace(/[ \t]+$/, "");
      else if (/(?:^|[ \t\n])$/.test(before)) after = after.replace(/^[ \t]+/, "");
      text = before + after;
    }
    return text;
  }
  corrected.addEventListener("input", () => setEdited(corrected.value.trim() !== ""));

  // ---- marks ----
  function keep() {
    marks.sort((a, b) => a.first - b.first);
    form.elements.spans.value = JSON.stringify(marks);
    if (!isEdited) corrected.value = correction();
    saveDraft();
  }
  function draw() {
    words.forEach((word, index) => {
      const isMarked = marks.some((mark) => mark.first <= index && index <= mark.last);
      word.classList.toggle("marked", isMarked);
      word.setAttribute("aria-selected", String(isMarked));
    });
    place.replaceChildren(...marks.map(row));
  }
  function row(mark) {
    const element = template.content.cloneNode(true).firstElementChild;
    element.querySelector("q").textContent = words.slice(mark.first, mark.last + 1).map((word) => word.textContent).join(" ").slice(0, 200);
    const [reason, text, remove] = element.querySelectorAll("select, input, button");
    reason.value = mark.reason;
    text.value = mark.correction;
    reason.addEventListener("input", () => { mark.reason = reason.value; keep(); });
    text.addEventListener("input", () => { mark.correction = text.value; keep(); });
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      list.focus();
    });
    remove.addEventListener("click", () => { unmark(mark); list.focus(); });
    return element;
  }
  function unmark(mark) {
    marks = marks.filter((other) => other !== mark);
    keep();
    draw();
  }
  // `claim` names the claim whose verdict made the mark, which stays its own when a tap makes it longer.
  function mark(first, last, reason = "absent", claim = "") {
    marks = marks.filter((other) => other.last < first || other.first > last);
    const added = { first, last, reason, correction: "", claim };
    marks.push(added);
    keep();
    draw();
    return added;
  }
  const markOf = (first, last) => marks.find((other) => other.first <= first && last <= other.last);
  function toggle(first, last) {
    const same = markOf(first, last);
    if (same) return unmark(same);
    const added = mark(first, last);
    place.children[marks.indexOf(added)].querySelector("input").focus();
  }
  // A finger that is drawn over words scrolls, so that it marks several one by one; no keyboard covers the next word.
  function tap(index) {
    const same = markOf(index, index);
    if (same) return unmark(same);
    const before = marks.find((other) => other.last === index - 1), after = marks.find((other) => other.first === index + 1);
    if (before) before.last = index;
    else if (after) after.first = index;
    else return mark(index, index);
    keep();
    draw();
  }

  // ---- the cursor among the words ----
  function go(index, isExtending) {
    cursor = Math.min(words.length - 1, Math.max(0, index));
    if (!isExtending) anchor = cursor;
    const [first, last] = [Math.min(anchor, cursor), Math.max(anchor, cursor)];
    words.forEach((word, number) => word.classList.toggle("cursor", first <= number && number <= last));
    list.setAttribute("aria-activedescendant", words[cursor].id);
    words[cursor].scrollIntoView({ block: "nearest" });
  }
  const toggleSelected = () => words.length && toggle(Math.min(anchor, cursor), Math.max(anchor, cursor));
  const listKeys = {
    ArrowLeft: (event) => go(cursor - 1, event.shiftKey), ArrowRight: (event) => go(cursor + 1, event.shiftKey),
    Home: (event) => go(0, event.shiftKey), End: (event) => go(words.length - 1, event.shiftKey),
    " ": (event) => { if (!event.repeat) toggleSelected(); },
  };
  let pressed = null;
  const indexOf = (event) => words.indexOf(event.target.closest?.('[role="option"]'));
  list.addEventListener("pointerdown", (event) => {
    pressed = indexOf(event);
    if (pressed >= 0) go(pressed, event.shiftKey);
  });
  list.addEventListener("pointermove", (event) => {
    if (pressed === null || pressed < 0 || !event.buttons) return;
    const index = words.indexOf(document.elementFromPoint(event.clientX, event.clientY)?.closest('[role="option"]'));
    if (index >= 0) go(index, true);
  });
  list.addEventListener("pointerup", (event) => {
    if (pressed !== null && pressed >= 0) {
      if (event.pointerType === "touch") tap(cursor);
      else toggle(Math.min(anchor, cursor), Math.max(anchor, cursor));
    }
    pressed = null;
  });

  // ---- claims ----
  let claim = -1;
  const radiosOf = (fieldset) => [...fieldset.querySelectorAll("input")];
  const isJudged = (fieldset) => radiosOf(fieldset).some((radio) => radio.checked);
  function goToClaim(index) {
    found[claim]?.classList.remove("current");
    words.forEach((word) => word.classList.remove("hinted"));
    claim = index;
    const fieldset = found[claim];
    if (!fieldset) return list.focus();
    fieldset.classList.add("current");
    for (let i = Number(fieldset.dataset.first); i <= Number(fieldset.dataset.last); i++) words[i].classList.add("hinted");
    if (!fieldset.contains(document.activeElement)) radiosOf(fieldset)[0].focus({ preventScroll: true });
    fieldset.scrollIntoView({ block: "nearest" });
  }
  function nextClaim() {
    const order = found.map((_, i) => (claim + 1 + i) % found.length);
    goToClaim(order.find((index) => !isJudged(found[index])) ?? -1);
  }
  function judged(fieldset, value) {
    const [first, last] = [Number(fieldset.dataset.first), Number(fieldset.dataset.last)];
    const { name } = radiosOf(fieldset)[0];
    const own = marks.find((other) => other.claim === name) ?? marks.find((other) => other.first === first && other.last === last);
    const isCovered = marks.some((other) => other.first <= first && last <= other.last);
    if (value === "false" && !isCovered) mark(first, last, REASONS[fieldset.dataset.kind], name);
    else if (value !== "false" && own) unmark(own);
    saveDraft();
  }
  for (const fieldset of found) {
    fieldset.addEventListener("focusin", () => { if (found[claim] !== fieldset) goToClaim(found.indexOf(fieldset)); });
    fieldset.addEventListener("change", (event) => judged(fieldset, event.target.value));
  }
  const judge = (value) => () => {
    const fieldset = found[claim];
    if (!fieldset) return nextClaim();
    radiosOf(fieldset).find((radio) => radio.value === value).checked = true;
    judged(fieldset, value);
    nextClaim();
  };

  if (words.length) go(0);
  draw();
  setEdited(corrected.value !== "");
  if (!isEdited) corrected.value = correction();
  return {
    keys: { m: toggleSelected, w: () => list.focus(), c: nextClaim, y: judge("true"), n: judge("false"), d: judge("unknown") },
    // The words take these keys only while they have the focus.
    takes(event) {
      const act = event.target === list && listKeys[event.key];
      if (!act) return false;
      event.preventDefault();
      act(event);
      return true;
    },
  };
}
