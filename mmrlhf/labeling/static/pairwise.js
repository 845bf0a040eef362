// Two answers: choose one, a tie, or both bad.
export function pairwise(form, { saveDraft }) {
  const answers = form.querySelectorAll(".answer");
  const strength = form.querySelector(".strength");
  function update() {
    const choice = form.elements.choice.value;
    answers[0].classList.toggle("chosen", choice === "left");
    answers[1].classList.toggle("chosen", choice === "right");
    strength.classList.toggle("off", choice === "tie" || choice === "both_bad");
  }
  const choose = (name, value) => () => {
    form.elements[name].value = value;
    update();
    saveDraft();
  };
  form.addEventListener("change", update);
  update();
  const [left, right] = [choose("choice", "left"), choose("choice", "right")];
  return {
    keys: {
      a: left, b: right, ArrowLeft: left, ArrowRight: right, t: choose("choice", "tie"), x: choose("choice", "both_bad"),
      1: choose("strength", "1"), 2: choose("strength", "2"), 3: choose("strength", "3"),
    },
    problem: () => (form.elements.choice.value ? "" : "Choose an answer, a tie, or both bad."),
  };
}
