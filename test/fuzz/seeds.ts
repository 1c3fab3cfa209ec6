/** Seeds that once showed something, or reach far corners: they are tried first, every time. */
export const KEPT_SEEDS: readonly number[] = [
  ...[1, 2, 3, 42, 4711, 65_536, 2 ** 31, 2 ** 32 - 1],
  // An empty field between two files; a request behind a refused one that was stored and never answered.
  ...[1_422_534_765, 3_930_862_040],
  // A byte too many after the body made a 400 of an upload that was stored.
  974_973_380,
  // A field far beyond its limit was refused for the memory of all.
  1_845_178_146,
  // A request behind one that was read directly, in the same packet, was stored and never answered.
  4_040_115_434,
  // The other parser never came to its end.
  3_037_589_848,
  // A header line that is folded within a parameter.
  2_482_224_130,
]
