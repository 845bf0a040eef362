// Pictures: one at a time, enlarged and moved by wheel, fingers, mouse or keys.
const MAX_SCALE = 12, STEP = 1.3, MOVE = 60;

export function viewer(section) {
  if (!section) return { keys: {}, takes: () => false };
  const stage = section.querySelector(".viewer");
  const images = [...stage.querySelectorAll("img")];
  const which = section.querySelector(".which");
  let index = 0, scale = 1, x = 0, y = 0;
  const pointers = new Map();

  function draw() {
    const { clientWidth: width, clientHeight: height } = stage;
    x = Math.min(0, Math.max(width * (1 - scale), x));
    y = Math.min(0, Math.max(height * (1 - scale), y));
    images[index].style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
  }
  function zoom(factor, clientX, clientY) {
    const box = stage.getBoundingClientRect();
    const [px, py] = clientX === undefined ? [box.width / 2, box.height / 2] : [clientX - box.left, clientY - box.top];
    const wanted = Math.min(MAX_SCALE, Math.max(1, scale * factor));
    x = px - (px - x) * (wanted / scale);
    y = py - (py - y) * (wanted / scale);
    scale = wanted;
    draw();
  }
  function move(dx, dy) {
    x += dx;
    y += dy;
    draw();
  }
  function fit() {
    scale = 1;
    draw();
  }
  function show(step) {
    if (images.length < 2) return;
    images[index].hidden = true;
    index = (index + step + images.length) % images.length;
    images[index].hidden = false;
    which.textContent = `${index + 1} / ${images.length}`;
    stage.querySelector(".broken").hidden = !images[index].dataset.broken;
    fit();
  }

  for (const image of images) {
    const broken = () => {
      image.dataset.broken = "yes";
      if (image === images[index]) stage.querySelector(".broken").hidden = false;
    };
    if (image.complete && !image.naturalWidth) broken();
    image.addEventListener("error", broken);
  }
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), event.clientX, event.clientY);
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => (scale > 1 ? fit() : zoom(2.5, event.clientX, event.clientY)));
  stage.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, event);
    stage.setPointerCapture(event.pointerId);
    stage.classList.add("moving");
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const [other] = [...pointers.values()].filter((pointer) => pointer.pointerId !== event.pointerId);
    pointers.set(event.pointerId, event);
    if (!other) return move(event.clientX - before.clientX, event.clientY - before.clientY);
    const apart = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY);
    zoom(apart(event) / Math.max(1, apart(before)), (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    stage.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      stage.classList.toggle("moving", pointers.size > 0);
    });
  }
  const actions = { in: () => zoom(STEP), out: () => zoom(1 / STEP), fit, previous: () => show(-1), next: () => show(1) };
  for (const button of section.querySelectorAll("[data-view]")) button.addEventListener("click", actions[button.dataset.view]);
  addEventListener("resize", draw);

  const arrows = { ArrowLeft: [MOVE, 0], ArrowRight: [-MOVE, 0], ArrowUp: [0, MOVE], ArrowDown: [0, -MOVE] };
  return {
    keys: {
      "+": actions.in, "=": actions.in, "-": actions.out, 0: fit, "[": actions.previous, "]": actions.next, p: () => stage.focus(),
    },
    // A picture that has the focus is moved by the arrow keys. A whole one stays: they do not vote.
    takes(event) {
      if (event.target !== stage || !(event.key in arrows)) return false;
      if (scale > 1) {
        event.preventDefault();
        move(...arrows[event.key]);
      }
      return true;
    },
  };
}
