// Sets of experts: one hexadecimal number a layer, of which bit e stands for expert e.
export function cells(layers, experts) {
  const made = new Uint8Array(layers.length * experts);
  layers.forEach((text, layer) => {
    for (let place = 0; place < text.length; place += 1) {
      const nibble = parseInt(text[text.length - 1 - place], 16);
      for (let bit = 0; bit < 4; bit += 1) {
        const expert = 4 * place + bit;
        if (nibble >> bit & 1 && expert < experts) made[layer * experts + expert] = 1;
      }
    }
  });
  return made;
}

export const size = (set) => set.reduce((sum, each) => sum + (each ? 1 : 0), 0);
