// What an npy file's header says (NEP 1): enough for people to see what came.

export function describeNpy(buffer) {
  const bytes = new Uint8Array(buffer);
  const magic = String.fromCharCode(...bytes.slice(1, 6));
  if (bytes[0] !== 0x93 || magic !== "NUMPY") return "Not an npy file";
  const length = new DataView(buffer).getUint16(8, true);
  const header = new TextDecoder("latin1").decode(bytes.slice(10, 10 + length));
  const dtype = /'descr': '([^']*)'/.exec(header)?.[1] ?? "?";
  const shape = /'shape': \(([^)]*)\)/.exec(header)?.[1] ?? "?";
  return `npy array of type ${dtype} and shape [${shape.replace(/,\s*$/, "")}]`;
}
