// Several answers: a rank for each, the outlined one by digit.
export function ranking(form, { saveDraft }) {
  const answers = [...form.querySelectorAll(".answer")];
  const rankOf = (position) => form.elements[`rank-${position}`].value;
  const firstWithout = () => answers.findIndex((_, position) => !rankOf(position));
  let current = Math.max(0, firstWithout());
  function go(position) {
    answers[current].classList.remove("current");
    current = Math.min(answers.length - 1, Math.max(0, position));
    answers[current].classList.add("current");
    answers[current].scrollIntoView({ block: "nearest" });
  }
  function rank(value) {
    if (value > answers.length) return;
    form.elements[`rank-${current}`].value = String(value);
    saveDraft();
    const next = firstWithout();
    go(next === -1 ? current + 1 : next);
  }
  form.addEventListener("focusin", (event) => {
    const position = answers.indexOf(event.target.closest(".answer"));
    if (position >= 0) go(position);
  });
  go(current);
  const digits = Object.fromEntries(answers.map((_, index) => [index + 1, () => rank(index + 1)]));
  return {
    keys: { ...digits, ArrowUp: () => go(current - 1), ArrowDown: () => go(current + 1) },
    problem: () => (firstWithout() === -1 ? "" : `Give answer ${String.fromCharCode(65 + firstWithout())} a rank.`),
  };
}
