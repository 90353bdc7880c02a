// H.264 in Annex B to MP4: fragments to play while they come, or a whole file. Nothing is encoded.

const text = new TextEncoder();
export const TIMESCALE = 90000;

function box(name, ...parts) {
  const size = parts.reduce((sum, part) => sum + part.length, 8);
  const out = new Uint8Array(size);
  new DataView(out.buffer).setUint32(0, size);
  out.set(text.encode(name), 4);
  let at = 8;
  for (const part of parts) { out.set(part, at); at += part.length; }
  return out;
}

function u8(...values) { return Uint8Array.from(values); }
function u16(...values) { return Uint8Array.from(values.flatMap((v) => [v >> 8 & 255, v & 255])); }
function u32(...values) {
  const out = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((v, i) => out.setUint32(4 * i, v));
  return new Uint8Array(out.buffer);
}
function zeros(count) { return new Uint8Array(count); }

// The NAL units of an access unit.
export function units(data) {
  const starts = [];
  for (let i = 0; i + 2 < data.length; i++) {
    if (data[i] === 0 && data[i + 1] === 0 && data[i + 2] === 1) { starts.push(i + 3); i += 2; }
  }
  return starts.map((start, n) => {
    let end = n + 1 < starts.length ? starts[n + 1] - 3 : data.length;
    while (end > start && data[end - 1] === 0) end--;
    return data.subarray(start, end);
  });
}

// A packet as MP4 holds it: lengths instead of start codes, parameter sets apart.
export function toSample(packet, fps) {
  const all = units(packet.data);
  const kind = (unit) => unit[0] & 31;
  const slices = all.filter((unit) => ![7, 8, 9].includes(kind(unit)));
  const sps = all.find((unit) => kind(unit) === 7), pps = all.find((unit) => kind(unit) === 8);
  const data = new Uint8Array(slices.reduce((sum, unit) => sum + unit.length + 4, 0));
  let at = 0;
  for (const unit of slices) {
    data.set(u32(unit.length), at);
    data.set(unit, at + 4);
    at += unit.length + 4;
  }
  return {
    data,
    key: (packet.flags & 1) !== 0,
    frame: packet.frame,
    duration: Math.round(packet.span * TIMESCALE / fps),
    config: sps && pps ? { sps: sps.slice(), pps: pps.slice(), ...sizeOf(sps) } : null,
  };
}

export function codecOf(sps) {
  return "avc1." + [1, 2, 3].map((i) => sps[i].toString(16).padStart(2, "0")).join("").toUpperCase();
}

// Width and height from a sequence parameter set (H.264, 7.3.2.1.1), 4:2:0 and progressive.
function sizeOf(sps) {
  const bytes = [];
  for (let i = 1; i < sps.length; i++) {
    if (i > 2 && sps[i] === 3 && sps[i - 1] === 0 && sps[i - 2] === 0) continue;
    bytes.push(sps[i]);
  }
  let at = 24;
  const bit = () => { const b = bytes[at >> 3] >> (7 - (at & 7)) & 1; at++; return b; };
  const bits = (n) => { let v = 0; while (n--) v = v << 1 | bit(); return v; };
  const ue = () => { let n = 0; while (!bit() && n < 32) n++; return 2 ** n - 1 + bits(n); };
  const se = () => { const v = ue(); return v & 1 ? (v + 1) / 2 : -v / 2; };
  const profile = bytes[0];
  ue();
  if ([100, 110, 122, 244, 44, 83, 86, 118, 128].includes(profile)) {
    ue(); ue(); ue(); bit();
    if (bit()) for (let i = 0; i < 8; i++) if (bit()) {
      let last = 8, next = 8;
      for (let j = 0; j < (i < 6 ? 16 : 64); j++) {
        if (next) next = (last + se() + 256) % 256;
        last = next || last;
      }
    }
  }
  ue();
  const order = ue();
  if (order === 0) ue();
  else if (order === 1) { bit(); se(); se(); for (let n = ue(); n > 0; n--) se(); }
  ue(); bit();
  let width = 16 * (ue() + 1), height = 16 * (ue() + 1);
  if (!bit()) { bit(); height *= 2; }
  bit();
  if (bit()) {
    const [left, right, top, bottom] = [ue(), ue(), ue(), ue()];
    width -= 2 * (left + right);
    height -= 2 * (top + bottom);
  }
  return { width, height };
}

function entry({ sps, pps, width, height }) {
  const avcc = box("avcC", u8(1, sps[1], sps[2], sps[3], 0xff, 0xe1), u16(sps.length), sps, u8(1), u16(pps.length), pps);
  return box("avc1", zeros(6), u16(1), zeros(16), u16(width, height), u32(0x480000, 0x480000, 0), u16(1), zeros(32), u16(24, 0xffff), avcc);
}

const MATRIX = u32(0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000);

function moov(configs, duration, tables, extra = []) {
  const { width, height } = configs[0];
  const head = box("mvhd", u32(0, 0, 0, TIMESCALE, duration, 0x10000), u16(0x100, 0), u32(0, 0), MATRIX, zeros(24), u32(2));
  const track = box("tkhd", u32(7, 0, 0, 1, 0, duration, 0, 0), u16(0, 0, 0, 0), MATRIX, u32(width * 65536, height * 65536));
  const media = box("mdhd", u32(0, 0, 0, TIMESCALE, duration), u16(0x55c4, 0));
  const handler = box("hdlr", u32(0, 0), text.encode("vide"), zeros(12), text.encode("LiveReel\0"));
  const refs = box("dinf", box("dref", u32(0, 1), box("url ", u32(1))));
  const stsd = box("stsd", u32(0, configs.length), ...configs.map(entry));
  const info = box("minf", box("vmhd", u32(1), zeros(8)), refs, box("stbl", stsd, ...tables));
  return box("moov", head, box("trak", track, box("mdia", media, handler, info)), ...extra);
}

// What comes before the fragments of one size.
export function initSegment(config) {
  const none = [box("stts", u32(0, 0)), box("stsc", u32(0, 0)), box("stsz", u32(0, 0, 0)), box("stco", u32(0, 0))];
  const extends_ = box("mvex", box("trex", u32(0, 1, 1, 0, 0, 0)));
  return join(box("ftyp", text.encode("iso5"), u32(512), text.encode("iso5iso6avc1mp41")), moov([config], 0, none, [extends_]));
}

// One frame, shown at `time` (in TIMESCALE).
export function fragment(sample, number, time) {
  const flags = sample.key ? 0x02000000 : 0x01010000;
  const make = (offset) => box("moof", box("mfhd", u32(0, number)), box("traf",
    box("tfhd", u32(0x020000, 1)),
    box("tfdt", u32(0x01000000, Math.floor(time / 2 ** 32), time % 2 ** 32)),
    box("trun", u32(0x000701, 1, offset, sample.duration, sample.data.length, flags))));
  return join(make(make(0).length + 8), box("mdat", sample.data));
}

// A file of samples, the first of which has to be a keyframe.
export function file(samples) {
  const configs = [], runs = [];
  let config = null;
  for (const sample of samples) {
    if (sample.config && !(config && same(sample.config, config))) {
      config = sample.config;
      let index = configs.findIndex((known) => same(known, config));
      if (index < 0) index = configs.push(config) - 1;
      runs.push({ index: index + 1, samples: [] });
    }
    runs.at(-1).samples.push(sample);
  }
  const ftyp = box("ftyp", text.encode("isom"), u32(512), text.encode("isomavc1mp41"));
  const duration = samples.reduce((sum, sample) => sum + sample.duration, 0);
  const times = [];
  for (const { duration } of samples) {
    if (times.at(-1)?.[1] === duration) times.at(-1)[0] += 1;
    else times.push([1, duration]);
  }
  const keys = samples.flatMap((sample, i) => sample.key ? [i + 1] : []);
  const make = (start) => {
    let at = start;
    const offsets = runs.map((run) => {
      const here = at;
      at += run.samples.reduce((sum, sample) => sum + sample.data.length, 0);
      return here;
    });
    return moov(configs, duration, [
      box("stts", u32(0, times.length, ...times.flat())),
      box("stss", u32(0, keys.length, ...keys)),
      box("stsc", u32(0, runs.length, ...runs.flatMap((run, i) => [i + 1, run.samples.length, run.index]))),
      box("stsz", u32(0, 0, samples.length, ...samples.map((sample) => sample.data.length))),
      box("stco", u32(0, offsets.length, ...offsets)),
    ]);
  };
  const head = make(ftyp.length + make(0).length + 8);
  const size = samples.reduce((sum, sample) => sum + sample.data.length, 8);
  return new Blob([ftyp, head, u32(size), text.encode("mdat"), ...samples.map((sample) => sample.data)], { type: "video/mp4" });
}

export function same(a, b) {
  const equal = (x, y) => x.length === y.length && x.every((value, i) => value === y[i]);
  return equal(a.sps, b.sps) && equal(a.pps, b.pps);
}

function join(...parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { out.set(part, at); at += part.length; }
  return out;
}
