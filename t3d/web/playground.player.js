/* Playing the steps of an answer: as its blocks come, slower, or again. Adds `Player` to the global `T3D`. */
"use strict";
{
  const FRAME = 16; // milliseconds; of shorter steps several are shown at once
  const LONGEST_LIVE_PAUSE = 400; // milliseconds
  const REPLAY_PAUSE = 120; // milliseconds a step of a replay, where the pace says nothing of it

  /**
   * What of an answer is shown.
   *
   * view: `T3D.Blocks`, empty. shape: {offset: prompt tokens, blockSize, limit: tokens the response may have}.
   * pace: "instant", "live" (as the blocks come) or milliseconds a step. onStep: called after every change with
   * (shown, last, isPlaying).
   */
  class Player {
    constructor(view, shape, pace, onStep) {
      Object.assign(this, { view, shape, pace, onStep, shown: 0, last: 0 });
      this._waiting = []; // finished blocks that the view has not got yet
      this._timer = null;
      this._isOver = false;
      this._interval = 0; // milliseconds from the last but one block to the last
      this._lastArrival = performance.now();
      this.seek(0);
    }

    get isPlaying() {
      return this._timer !== null;
    }

    setPace(pace) {
      this.pace = pace;
      if (!this.isPlaying) return;
      if (pace === "instant") this.seek(this.last);
      else this._schedule();
    }

    /** A finished block has come: {text, step, confidence, id} of each of its tokens. */
    push(tokens) {
      const isFollowing = this.isPlaying || this.shown === this.last;
      const now = performance.now();
      [this._interval, this._lastArrival] = [now - this._lastArrival, now];
      this._waiting.push(tokens);
      this.last = Math.max(this.last, ...tokens.map(({ step }) => step));
      if (isFollowing) this._schedule();
      else this._tell();
    }

    /** No further block will come. */
    end() {
      this._isOver = true;
      this._show(this.shown);
    }

    /** Show the state after a step, and stay there. */
    seek(step) {
      this.pause();
      this._show(step);
    }

    /** Go on from the step that is shown; from the start if that is the last. */
    play() {
      if (this.last === 0) return; // what comes is followed anyway
      if (this.shown === this.last) this._show(0);
      this._schedule();
    }

    /** Stay at the step that is shown. */
    pause() {
      clearTimeout(this._timer);
      this._timer = null;
    }

    _show(step) {
      this.shown = Math.min(Math.max(step, 0), this.last);
      while (this._waiting.length && this.view.maxStep <= this.shown) this.view.append(this._waiting.shift());
      const expected = this._isOver || this.shown < this.last ? 0 : this._numUnderWay();
      if (this.view.expected.length !== expected) this.view.expect(expected);
      const visible = this.shown === this.last ? null : this.shown; // null: all
      if (this.view.step !== visible) this.view.showStep(visible);
      this._tell();
    }

    /* Tokens of the block behind those in the view. */
    _numUnderWay() {
      const { offset, blockSize, limit } = this.shape;
      const count = this.view.tokens.length;
      return Math.max(0, Math.min(blockSize - ((offset + count) % blockSize), limit - count));
    }

    _schedule() {
      this.pause();
      const pause = this._pauseOfStep();
      if (pause === 0) {
        this._show(this.last);
        return;
      }
      this._timer = setTimeout(() => this._advance(Math.max(1, Math.round(FRAME / pause))), Math.max(FRAME, pause));
      this._tell();
    }

    _advance(steps) {
      this._timer = null;
      if (this.shown + steps < this.last) this._schedule();
      this._show(this.shown + steps);
    }

    /* Milliseconds; live: what has come is shown by the time the next block is due. */
    _pauseOfStep() {
      if (typeof this.pace === "number") return this.pace;
      if (this._isOver && !this._waiting.length) return REPLAY_PAUSE;
      if (this.pace === "instant") return 0;
      const left = Math.max(0, this._lastArrival + this._interval - performance.now());
      return Math.min(LONGEST_LIVE_PAUSE, left / (this.last - this.shown));
    }

    _tell() {
      this.onStep(this.shown, this.last, this.isPlaying);
    }
  }

  T3D.Player = Player;
}
