/* One pane: its settings, the answer to them, its figures and its replay. Adds `Pane` to the global `T3D`. */
"use strict";
{
  const CLOCK = 100; // milliseconds between two looks at the clock
  const ENDS = { running: "…", stopped: "you", failed: "an error" }; // where the server has told no reason

  /**
   * A pane of the page, made from its template.
   *
   * page: {models, key(), question(): [prompt, api], look(): {color, pace}, changed(), copy(text, what, button),
   * refused()}.
   */
  class Pane {
    constructor(name, page) {
      Object.assign(this, { name, page, request: null });
      this.root = document.getElementById("pane").content.firstElementChild.cloneNode(true);
      this.root.setAttribute("aria-label", `Pane ${name}`);
      this.root.dataset.name = name;
      this._find("h2").textContent = name;
      this.settings = new T3D.Settings(this._find("form"), page.models, () => page.changed());
      this._listen();
      this._reset();
    }

    get isRunning() {
      return this.state === "running";
    }

    /** The answer is there to its end. */
    get isDone() {
      return this.state === "done";
    }

    /** Ask for an answer and show it as it comes; resolves when it is over, whichever way. */
    async run(prompt, api) {
      this.stop();
      this._reset();
      this.request = this._requestFor(prompt, api);
      const abort = new AbortController();
      Object.assign(this, { state: "running", abort });
      this.startedAt = performance.now();
      const clock = setInterval(() => this._tellFigures(), CLOCK);
      let [state, error] = ["done", null];
      try {
        const body = { ...this.request.body, stream: true, return_trajectory: true };
        for await (const event of T3D.stream(this.request.path, body, this.page.key(), abort.signal)) this._take(event);
      } catch (caught) {
        [state, error] = caught.name === "AbortError" ? ["stopped", null] : ["failed", caught];
      } finally {
        clearInterval(clock);
      }
      if (this.abort === abort) this._end(state, error);
    }

    /** Leave the server; it frees what the answer held. */
    stop() {
      this.abort?.abort();
    }

    setColor(mode) {
      this.view?.setColor(mode);
      this._tellLegend();
    }

    setPace(pace) {
      this.player?.setPace(pace);
    }

    /** Frame one token of the answer; null: none. */
    mark(index) {
      this.marked = index;
      this.view?.mark(index === null ? [] : [index]);
    }

    /** One sentence of how it went, for those who cannot see it. */
    get summary() {
      if (this.state !== "done") return `Pane ${this.name} ${this.state}.`;
      const { forwards, tokens_per_forward: rate } = this.facts;
      const cost = `${this.tokens.length} tokens in ${forwards} forwards, ${rate.toFixed(2)} tokens per forward`;
      return `Pane ${this.name} finished: ${cost}.`;
    }

    _find(selector) {
      return this.root.querySelector(selector);
    }

    _reset() {
      Object.assign(this, { state: "idle", abort: null, text: "", tokens: [], facts: {}, finishReason: null });
      this.marked = null;
      this.player?.pause();
      [this.view, this.player] = [null, null];
      this._find(".error").hidden = true;
      this._find(".cells").replaceChildren();
      this._find(".replay").hidden = true;
      this._find('[data-copy="answer"]').disabled = true;
      this._tellFigures();
      this._tellLegend();
    }

    _requestFor(prompt, api) {
      const question = api === "chat" ? { messages: [{ role: "user", content: prompt }] } : { prompt };
      const { model, ...fields } = this.settings.fields;
      const path = api === "chat" ? "v1/chat/completions" : "v1/completions";
      return { path, body: { model, ...question, ...fields }, hasKey: Boolean(this.page.key()) };
    }

    /* An event of the stream. */
    _take(event) {
      for (const choice of event.choices) {
        if (choice.t3d) this._learn(choice.t3d);
        this.text += choice.delta?.content ?? choice.text ?? "";
        if (choice.trajectory?.token_ids.length) this._reveal(choice.trajectory);
        this.finishReason = choice.finish_reason ?? this.finishReason;
      }
      this._tellFigures();
    }

    _learn(facts) {
      Object.assign(this.facts, facts);
      if (this.view) return;
      const { prompt_tokens: offset, block_size: blockSize } = facts;
      const { color, pace } = this.page.look();
      const root = T3D.element("div");
      this._find(".cells").replaceChildren(root);
      this.view = new T3D.Blocks(root, { blockSize, offset, color, label: `Tokens of pane ${this.name}` });
      const shape = { offset, blockSize, limit: this.settings.mostTokens(offset) };
      this.player = new T3D.Player(this.view, shape, pace, (...progress) => this._tellStep(...progress));
      this._find(".replay").hidden = false;
    }

    _reveal(trajectory) {
      const tokens = trajectory.tokens.map((text, at) => ({
        text,
        id: trajectory.token_ids[at],
        step: trajectory.reveal_steps[at],
        confidence: trajectory.confidences[at],
      }));
      this.tokens.push(...tokens);
      this.player.push(tokens);
    }

    _end(state, error) {
      Object.assign(this, { abort: null, state });
      this.player?.end();
      this._find('[data-copy="answer"]').disabled = this.text === "";
      this._tellFigures();
      if (!error) return;
      this._find(".error").textContent = error.message;
      this._find(".error").hidden = false;
      if (error.status === 401) this.page.refused();
    }

    /* The server's figures; those so far while it has not told them. */
    _tellFigures() {
      const { forwards = this.player?.last, seed } = this.facts;
      const seconds = this.facts.seconds ?? (this.isRunning ? (performance.now() - this.startedAt) / 1000 : undefined);
      const count = this.tokens.length;
      const texts = {
        forwards,
        tpf: this.facts.tokens_per_forward?.toFixed(2) ?? (forwards && (count / forwards).toFixed(2)),
        tokens: this.view ? count : undefined,
        speed: count && seconds ? Math.round(count / seconds) : undefined,
        seconds: seconds?.toFixed(2),
        seed,
        end: ENDS[this.state] ?? this.finishReason,
      };
      this._find(".plain p").textContent = this.text;
      for (const [name, text] of Object.entries(texts)) {
        this._find(`[data-figure="${name}"]`).textContent = text ?? "–";
      }
    }

    _tellStep(shown, last, isPlaying) {
      const slider = this._find('input[type="range"]');
      [slider.max, slider.value] = [last, shown];
      this._find("output").textContent = `step ${shown} / ${last}`;
      this._find('[data-replay="play"]').textContent = isPlaying ? "Pause" : "Play";
      if (this.marked !== null) this.mark(this.marked); // its cell may be a new one
    }

    _tellLegend() {
      const numRanks = this.view?.numRanks ?? this.settings.model.t3d.block_size;
      T3D.legend(this._find(".legend"), { color: this.page.look().color, numRanks });
    }

    _listen() {
      const replay = {
        back: () => this.player.seek(this.player.shown - 1),
        on: () => this.player.seek(this.player.shown + 1),
        play: () => (this.player.isPlaying ? this.player.seek(this.player.shown) : this.player.play()),
      };
      for (const [name, act] of Object.entries(replay)) {
        this._find(`[data-replay="${name}"]`).addEventListener("click", act);
      }
      const slider = this._find('input[type="range"]');
      slider.addEventListener("input", () => this.player.seek(Number(slider.value)));
      const copies = {
        answer: () => [this.text, "answer"],
        curl: () => [T3D.snippets.curl(this._lastOrNext()), "curl command"],
        python: () => [T3D.snippets.python(this._lastOrNext()), "Python program"],
      };
      for (const [name, make] of Object.entries(copies)) {
        const button = this._find(`[data-copy="${name}"]`);
        button.addEventListener("click", () => this.page.copy(...make(), button));
      }
    }

    /* The request that the answer belongs to; without one, that of the present settings. */
    _lastOrNext() {
      return this.request ?? this._requestFor(...this.page.question());
    }
  }

  T3D.Pane = Pane;
}
