// npy files (NEP 1), as far as the pages need them.

function parse(buffer) {
  const bytes = new Uint8Array(buffer);
  if (bytes[0] !== 0x93 || String.fromCharCode(...bytes.slice(1, 6)) !== "NUMPY") return null;
  const start = 10 + new DataView(buffer).getUint16(8, true);
  const header = new TextDecoder("latin1").decode(bytes.slice(10, start));
  const dtype = /'descr': '([^']*)'/.exec(header)?.[1] ?? "?";
  const shape = /'shape': \(([^)]*)\)/.exec(header)?.[1] ?? "?";
  return { dtype, shape: shape.replace(/,\s*$/, ""), start };
}

export function describeNpy(buffer) {
  const found = parse(buffer);
  return found ? `npy array of type ${found.dtype} and shape [${found.shape}]` : "Not an npy file";
}

// The numbers of a float32 array, in its order.
export const floatsOf = (buffer) => new Float32Array(buffer.slice(parse(buffer).start));
