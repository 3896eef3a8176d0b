/* The colours of steps, confidences and shares.
 *
 * A plain script, the first of every page; it defines one global, `T3D`, to which all others add.
 */
"use strict";

const T3D = (() => {
  /* Anchors of the scales, evenly spaced. Lightness falls (or rises) evenly, so that order shows without hue too. */
  const STEP = {
    day: ["#fbeeb0", "#a9d9b4", "#4fb0b8", "#2c7bb0", "#33368a"],
    night: ["#e2cf7c", "#86bd92", "#3f949c", "#2f6c9e", "#3d4091"],
  };
  const CONFIDENCE = {
    day: ["#8c2d04", "#cf5312", "#f3954a", "#f8cfa5", "#f4f1ea"],
    night: ["#ffb37a", "#d98243", "#9c5b30", "#5f422f", "#2b2d32"],
  };
  const SHARE = {
    day: ["#f7f8fa", "#d3e0f0", "#9dbddf", "#5a8fc4", "#20568f"],
    night: ["#20242c", "#26374d", "#2f5580", "#4a80b8", "#8fbdea"],
  };

  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  /* the colour at `share` (0 .. 1) of a scale, as three channels */
  function blend(anchors, share) {
    const place = Math.min(Math.max(share, 0), 1) * (anchors.length - 1);
    const low = Math.min(Math.floor(place), anchors.length - 2);
    const [first, second] = [channels(anchors[low]), channels(anchors[low + 1])];
    return first.map((value, at) => Math.round(value + (second[at] - value) * (place - low)));
  }

  /* relative luminance as WCAG 2 defines it */
  function luminance(rgb) {
    const linear = rgb.map((value) => (value <= 10 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  }

  /* Black or white, whichever stands out more: one of them always has a contrast of at least 4.58. */
  const textOn = (rgb) => (luminance(rgb) > 0.1791 ? "#000" : "#fff");

  /* [background, text] of a place on a scale, each right for light and dark pages alike */
  function pair(scale, share) {
    const [day, night] = [blend(scale.day, share), blend(scale.night, share)];
    const css = (rgb) => `rgb(${rgb.join(" ")})`;
    return [`light-dark(${css(day)}, ${css(night)})`, `light-dark(${textOn(day)}, ${textOn(night)})`];
  }

  /* rank 1 .. numRanks: pale when early, dark when late */
  function stepColor(rank, numRanks) {
    return pair(STEP, numRanks > 1 ? (rank - 1) / (numRanks - 1) : 0);
  }

  /* 0 .. 1: what is sure recedes, what is unsure stands out */
  function confidenceColor(confidence) {
    return pair(CONFIDENCE, confidence ?? 0);
  }

  /* 0 .. 1, for tables: from the page's own colour to a strong one */
  function shareColor(share) {
    return pair(SHARE, share);
  }

  return { stepColor, confidenceColor, shareColor };
})();
