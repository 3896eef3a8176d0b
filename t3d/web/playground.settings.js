/* How one pane decodes: its form, filled from the served models. Adds `Settings` to the global `T3D`. */
"use strict";
{
  const OF_RULE = { threshold: "low_confidence_dynamic", entropy_bound: "entropy_bounded" };
  const TEXTS = ["model", "rule"];

  /**
   * The settings in a form.
   *
   * form: of the pane's template. models: as `/v1/models` lists them, at least one. onChange: called after a person's
   * change.
   */
  class Settings {
    constructor(form, models, onChange) {
      Object.assign(this, { form, models, blockSize: 0 });
      this._field("model").append(...models.map(({ id }) => new Option(id)));
      const { max_tokens: _, ...defaults } = models[0].t3d.defaults; // an empty field leaves that to the server
      this._fit(defaults);
      form.addEventListener("change", () => {
        this._fit();
        onChange();
      });
    }

    /** The record of the chosen model. */
    get model() {
      return this.models.find(({ id }) => id === this._field("model").value);
    }

    get isValid() {
      return this.form.reportValidity();
    }

    /** All settings as texts, for links. */
    get values() {
      return Object.fromEntries(new FormData(this.form)); // without those that are disabled
    }

    /** Tokens an answer to a prompt of so many may have. */
    mostTokens(promptTokens) {
      const { max_positions: room, defaults } = this.model.t3d;
      return this.fields.max_tokens ?? Math.min(defaults.max_tokens, room - promptTokens);
    }

    /** The settings as fields of a request; what is empty is left to the server. */
    get fields() {
      const given = Object.entries(this.values).filter(([, value]) => value !== "");
      return Object.fromEntries(given.map(([name, value]) => [name, TEXTS.includes(name) ? value : Number(value)]));
    }

    /** Take over settings, as `values` gives them; those not named stay. Returns what is wrong with them, or "". */
    fill(values) {
      const isServed = !values.model || this.models.some(({ id }) => id === values.model);
      if (isServed) this._fit(values);
      else this._fit({ ...values, model: this.model.id });
      return isServed ? "" : `${values.model} is not served here; ${this.model.id} stands in for it`;
    }

    /** As many tokens per step as comes next in the list: a setting worth comparing with. */
    nextTokensPerStep() {
      const steps = this._field("steps_per_block");
      steps.selectedIndex = (steps.selectedIndex + 1) % steps.options.length;
    }

    _field(name) {
      return this.form.elements.namedItem(name); // not the list's own length
    }

    /* Set values, and make what depends on the model and the rule agree with them. */
    _fit(values = {}) {
      const { steps_per_block: steps, ...others } = values;
      for (const [name, value] of Object.entries(others)) {
        const field = this._field(name);
        const isKnown = field && (!field.options || [...field.options].some((option) => option.value === value));
        if (isKnown && value !== undefined && value !== null) field.value = value;
      }
      this._fitSteps(steps);
      const { max_positions: max, defaults } = this.model.t3d;
      Object.assign(this._field("max_tokens"), { max, placeholder: defaults.max_tokens });
      for (const [name, rule] of Object.entries(OF_RULE)) {
        const isUsed = this._field("rule").value === rule;
        this._field(name).closest("label").hidden = !isUsed;
        this._field(name).disabled = !isUsed;
      }
    }

    /* Offer the model's tokens per step; without a wish, keep the present ones. */
    _fitSteps(wish) {
      const field = this._field("steps_per_block");
      const blockSize = this.model.t3d.block_size;
      if (blockSize !== this.blockSize) {
        const kept = field.value && Math.ceil((blockSize * Number(field.value)) / this.blockSize);
        const options = tokensPerStep(blockSize).map((tokens) => new Option(tokens, Math.ceil(blockSize / tokens)));
        field.replaceChildren(...options);
        wish ??= kept || blockSize;
        this.blockSize = blockSize;
      }
      if (wish === undefined) return;
      const steps = Math.min(Math.max(Math.round(Number(wish)) || blockSize, 1), blockSize);
      if (![...field.options].some(({ value }) => Number(value) === steps)) {
        field.append(new Option((blockSize / steps).toFixed(2), steps));
      }
      field.value = steps;
    }
  }

  /* 1, 2, 4 ... and the whole block */
  function tokensPerStep(blockSize) {
    const powers = Array.from({ length: 1 + Math.floor(Math.log2(blockSize)) }, (_, power) => 2 ** power);
    return [...new Set([...powers, blockSize])];
  }

  T3D.Settings = Settings;
}
