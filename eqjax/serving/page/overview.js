// The strip below the image: all of it at a glance, and the way to any place of it.

export class OverviewBar {
  constructor(canvas, view) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.view = view;
    const go = (event) => {
      const { left, width } = canvas.getBoundingClientRect();
      const { tape } = view;
      if (!tape || tape.isEmpty) return;
      const place = view.head.left + ((event.clientX - left) / width) * this.#length();
      if (place > view.head.right - 0.2 * view.width) view.goToEdge("right");
      else view.glideTo(place);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      go(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons && go(event));
    canvas.addEventListener("keydown", (event) => {
      const share = { ArrowLeft: -0.5, ArrowRight: 0.5, PageUp: -3, PageDown: 3 }[event.key];
      if (!share || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      view.scroll(share);
    });
  }

  /** Pixels of the image that the bar is long: at first it is not filled. */
  #length() {
    const { head, width } = this.view;
    return Math.max(head.right - head.left + width / 5, 3 * width);
  }

  draw() {
    const { canvas, context, view } = this;
    const { tape } = view;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.clearRect(0, 0, width, height);
    if (!tape || tape.isEmpty) return;
    const length = this.#length();
    const scale = width / length;
    const [begin, end] = [view.head.left, view.head.right];
    context.imageSmoothingQuality = "high";
    tape.overview.draw(context, begin, end, 0, 0, (end - begin) * scale, height);
    // What is not on the screen is dimmed.
    const from = Math.max(0, (view.x - begin) * scale);
    const to = Math.min(width, (view.x + view.width - begin) * scale);
    const style = getComputedStyle(canvas);
    context.fillStyle = style.getPropertyValue("--veil");
    context.fillRect(0, 0, from, height);
    context.fillRect(to, 0, width - to, height);
    context.strokeStyle = style.getPropertyValue("--accent");
    context.lineWidth = 2 * ratio;
    context.beginPath();
    context.roundRect(from + ratio, ratio, Math.max(to - from - 2 * ratio, 4 * ratio), height - 2 * ratio, 4 * ratio);
    context.stroke();
    const place = (100 * (view.x - begin)) / Math.max(1, end - begin - view.width);
    canvas.setAttribute("aria-valuenow", String(Math.round(Math.min(100, Math.max(0, place)))));
  }
}
