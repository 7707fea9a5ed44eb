// Parquet files of a bundle's three tables: plain values, no compression, one row group (the columns of
// collect/_tables.py). Every column is required; `hands` is a list of structs.

export type Kind = "i64" | "bool" | "f32" | "i8";

const PHYSICAL: Record<Kind, number> = { bool: 0, i8: 1, i64: 2, f32: 4 };

/** Thrift's compact protocol, as far as Parquet's footers need it. */
class Thrift {
  readonly bytes: number[] = [];
  private stack: number[] = [];
  private last = 0;

  varint(value: number): void {
    while (value > 127) {
      this.bytes.push((value % 128) | 128);
      value = Math.floor(value / 128);
    }
    this.bytes.push(value);
  }

  private zigzag(value: number): void {
    this.varint(value >= 0 ? 2 * value : -2 * value - 1);
  }

  private field(id: number, type: number): void {
    if (id > this.last && id - this.last < 16) this.bytes.push(((id - this.last) << 4) | type);
    else {
      this.bytes.push(type);
      this.zigzag(id);
    }
    this.last = id;
  }

  i32(id: number, value: number): void {
    this.field(id, 5);
    this.zigzag(value);
  }

  i64(id: number, value: number): void {
    this.field(id, 6);
    this.zigzag(value);
  }

  text(id: number, value: string): void {
    this.field(id, 8);
    this.raw(value);
  }

  raw(value: string): void {
    const bytes = new TextEncoder().encode(value);
    this.varint(bytes.length);
    this.bytes.push(...bytes);
  }

  bool(id: number, value: boolean): void {
    this.field(id, value ? 1 : 2);
  }

  struct(id: number, body: () => void): void {
    this.field(id, 12);
    this.element(body);
  }

  element(body: () => void): void {
    this.stack.push(this.last);
    this.last = 0;
    body();
    this.bytes.push(0);
    this.last = this.stack.pop() ?? 0;
  }

  list<T>(id: number, type: number, items: readonly T[], put: (item: T) => void): void {
    this.field(id, 9);
    if (items.length < 15) this.bytes.push((items.length << 4) | type);
    else {
      this.bytes.push(0xf0 | type);
      this.varint(items.length);
    }
    items.forEach(put);
  }

  zigzagRaw(value: number): void {
    this.zigzag(value);
  }
}

interface Leaf { path: string[]; kind: Kind; values: number[]; repetition?: number[]; definition?: number[] }

function encoded(kind: Kind, values: readonly number[]): Uint8Array {
  if (kind === "bool") {
    const out = new Uint8Array(Math.ceil(values.length / 8));
    values.forEach((value, at) => { if (value) out[at >> 3] |= 1 << (at & 7); });
    return out;
  }
  const width = kind === "i64" ? 8 : 4;
  const view = new DataView(new ArrayBuffer(width * values.length));
  values.forEach((value, at) => {
    if (kind === "i64") view.setBigInt64(8 * at, BigInt(Math.round(value)), true);
    else if (kind === "f32") view.setFloat32(4 * at, value, true);
    else view.setInt32(4 * at, value, true);
  });
  return new Uint8Array(view.buffer);
}

/** Levels of one bit: their length in four bytes, then one bit-packed run. */
function levels(values: readonly number[]): Uint8Array {
  const groups = Math.ceil(values.length / 8), head = new Thrift();
  head.varint((groups << 1) | 1);
  const out = new Uint8Array(4 + head.bytes.length + groups);
  new DataView(out.buffer).setUint32(0, head.bytes.length + groups, true);
  out.set(head.bytes, 4);
  values.forEach((value, at) => { if (value) out[4 + head.bytes.length + (at >> 3)] |= 1 << (at & 7); });
  return out;
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** The schema's lines in order: name, kind (null for a group), repetition (0 required, 2 repeated), children. */
type Line = [name: string, kind: Kind | null, repeated: 0 | 2, children: number, list?: boolean];

function file(lines: readonly Line[], leaves: readonly Leaf[], rows: number): Uint8Array {
  const parts: Uint8Array[] = [new TextEncoder().encode("PAR1")];
  let at = 4;
  const chunks = leaves.map((leaf) => {
    const body = joined([
      ...(leaf.repetition ? [levels(leaf.repetition)] : []),
      ...(leaf.definition ? [levels(leaf.definition)] : []),
      encoded(leaf.kind, leaf.values),
    ]);
    const count = leaf.definition?.length ?? leaf.values.length;
    const page = new Thrift();
    page.element(() => {
      page.i32(1, 0); // a data page
      page.i32(2, body.length);
      page.i32(3, body.length);
      page.struct(5, () => {
        page.i32(1, count);
        page.i32(2, 0); // plain
        page.i32(3, 3); // levels: runs and bits
        page.i32(4, 3);
      });
    });
    const offset = at, size = page.bytes.length + body.length;
    parts.push(new Uint8Array(page.bytes), body);
    at += size;
    return { leaf, offset, size, count };
  });
  const footer = new Thrift();
  footer.element(() => {
    footer.i32(1, 1);
    footer.list(2, 12, lines, ([name, kind, repeated, children, list]) =>
      footer.element(() => {
        if (kind !== null) footer.i32(1, PHYSICAL[kind]);
        if (name !== "schema") footer.i32(3, repeated);
        footer.text(4, name);
        if (children > 0) footer.i32(5, children);
        if (list) footer.i32(6, 3);
        if (kind === "i8") footer.i32(6, 15);
      }),
    );
    footer.i64(3, rows);
    const total = chunks.reduce((sum, chunk) => sum + chunk.size, 0);
    footer.list(4, 12, [0], () =>
      footer.element(() => {
        footer.list(1, 12, chunks, ({ leaf, offset, size, count }) =>
          footer.element(() => {
            footer.i64(2, offset);
            footer.struct(3, () => {
              footer.i32(1, PHYSICAL[leaf.kind]);
              footer.list(2, 5, [0, 3], (encoding) => footer.zigzagRaw(encoding));
              footer.list(3, 8, leaf.path, (part) => footer.raw(part));
              footer.i32(4, 0); // not compressed
              footer.i64(5, count);
              footer.i64(6, size);
              footer.i64(7, size);
              footer.i64(9, offset);
            });
          }),
        );
        footer.i64(2, total);
        footer.i64(3, rows);
      }),
    );
    footer.text(6, "haversack phone");
  });
  const end = new Uint8Array(8);
  new DataView(end.buffer).setUint32(0, footer.bytes.length, true);
  end.set(new TextEncoder().encode("PAR1"), 4);
  return joined([...parts, new Uint8Array(footer.bytes), end]);
}

/** A flat table. */
export function table(columns: readonly [name: string, kind: Kind, values: readonly number[]][]): Uint8Array {
  const lines: Line[] = [["schema", null, 0, columns.length], ...columns.map(([name, kind]): Line => [name, kind, 0, 0])];
  const leaves = columns.map(([name, kind, values]) => ({ path: [name], kind, values: [...values] }));
  return file(lines, leaves, columns[0][2].length);
}

/** A table whose last column is a list of structs in each row. */
export function tableWithList(
  columns: readonly [name: string, kind: Kind, values: readonly number[]][],
  name: string,
  fields: readonly [name: string, kind: Kind][],
  lists: readonly (readonly Record<string, number>[])[],
): Uint8Array {
  const repetition: number[] = [], definition: number[] = [];
  for (const list of lists) {
    if (list.length === 0) {
      repetition.push(0);
      definition.push(0);
    }
    list.forEach((_, at) => {
      repetition.push(at > 0 ? 1 : 0);
      definition.push(1);
    });
  }
  const items = lists.flat();
  const lines: Line[] = [
    ["schema", null, 0, columns.length + 1],
    ...columns.map(([column, kind]): Line => [column, kind, 0, 0]),
    [name, null, 0, 1, true],
    ["list", null, 2, 1],
    ["element", null, 0, fields.length],
    ...fields.map(([field, kind]): Line => [field, kind, 0, 0]),
  ];
  const leaves: Leaf[] = [
    ...columns.map(([column, kind, values]) => ({ path: [column], kind, values: [...values] })),
    ...fields.map(([field, kind]) => ({
      path: [name, "list", "element", field], kind, values: items.map((item) => item[field]), repetition, definition,
    })),
  ];
  return file(lines, leaves, lists.length);
}
