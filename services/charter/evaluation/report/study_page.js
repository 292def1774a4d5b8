// The page of a study: chooses the judge, and reads out the numbers of the mark that is nearest. It reads the same without.
(function () {
  const form = document.getElementById("choice");
  if (!form) return;
  form.hidden = false;
  const { judge, view } = form.elements;

  function choose() {
    for (const part of document.querySelectorAll("[data-judge], [data-view]")) {
      const inside = part.closest("[data-judge]").dataset.judge;
      const name = part.dataset.view;
      part.hidden = inside !== judge.value || (name !== undefined && name !== view.value);
    }
  }
  form.addEventListener("change", choose);
  choose();

  // How far from a mark, in pixels, a finger or a mouse still means it.
  const REACH = 32;
  const middle = (mark) => {
    const box = mark.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  for (const figure of document.querySelectorAll(".front")) {
    const marks = Array.from(figure.querySelectorAll(".spot"));
    const readout = figure.querySelector(".readout");
    const read = (mark) => {
      for (const one of marks) one.classList.toggle("read", one === mark);
      readout.textContent = mark.getAttribute("aria-label");
    };
    const nearest = (event) => {
      let best = REACH;
      let found;
      for (const mark of marks) {
        if (!mark.getClientRects().length) continue;
        const [x, y] = middle(mark);
        const apart = Math.hypot(event.clientX - x, event.clientY - y);
        if (apart < best) [best, found] = [apart, mark];
      }
      if (found) read(found);
    };
    figure.addEventListener("pointermove", nearest);
    figure.addEventListener("pointerdown", nearest);
    figure.addEventListener("focusin", (event) => {
      if (event.target.classList.contains("spot")) read(event.target);
    });
  }
})();
