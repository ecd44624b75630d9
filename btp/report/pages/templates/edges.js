// What can be scrolled sideways fades out where it is cut.
function fade(box) {
  const mark = () => {
    box.classList.toggle("cut-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    box.classList.toggle("cut-left", box.scrollLeft > 2);
  };
  box.addEventListener("scroll", mark, { passive: true });
  const watch = new ResizeObserver(mark);
  [box, ...box.children].forEach((one) => watch.observe(one));
}

document.querySelectorAll(".scroll, nav").forEach(fade);
