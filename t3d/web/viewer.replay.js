/* Replay: one clock for the responses shown; step 0 is before the first forward, `most` the end of the longest. */
"use strict";

T3D.Replay = class {
  /* root: holds the controls; onStep(step) shows a step, null for the finished response. */
  constructor(root, onStep) {
    const find = (id) => root.querySelector(`#${id}`);
    Object.assign(this, { onStep, play: find("play"), slider: find("step"), text: find("step-text"), speed: find("speed") });
    Object.assign(this, { back: find("step-back"), on: find("step-on"), timer: null, step: 0, most: 0 });
    this.play.addEventListener("click", () => this.toggle());
    this.back.addEventListener("click", () => this.move(-1));
    this.on.addEventListener("click", () => this.move(1));
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.speed.addEventListener("input", () => this.timer !== null && this._start());
  }

  /* Another response, finished, of so many steps. */
  load(most) {
    this.stop();
    this.most = most;
    this.slider.max = most;
    this._tell(most);
    this.onStep(null);
  }

  /* Stop playing and show a step. */
  show(step) {
    this.stop();
    this._tell(step);
    this.onStep(this.step);
  }

  move(by) {
    this.show(this.step + by);
  }

  /* Play from here, from the start if this is the end; or pause. */
  toggle() {
    if (this.timer !== null) return this.stop();
    if (this.step === this.most) this.show(0);
    this._start();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "Play";
  }

  _start() {
    clearInterval(this.timer);
    this.play.textContent = "Pause";
    this.timer = setInterval(() => this._tick(), 1000 / Number(this.speed.value));
  }

  _tick() {
    this._tell(this.step + 1);
    this.onStep(this.step);
    if (this.step === this.most) this.stop();
  }

  _tell(step) {
    this.step = Math.min(Math.max(step, 0), this.most);
    this.slider.value = this.step;
    this.slider.setAttribute("aria-valuetext", `step ${this.step} of ${this.most}`);
    this.text.textContent = `step ${this.step} of ${this.most}`;
    this.back.disabled = this.step === 0;
    this.on.disabled = this.step === this.most;
  }
};
