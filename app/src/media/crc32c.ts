// CRC-32C (Castagnoli) of bytes; 0xe3069283 of "123456789".

const TABLE = new Uint32Array(256).map((_, at) => {
  let crc = at;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});

export function crc32c(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (let at = 0; at < data.length; at++) crc = TABLE[(crc ^ data[at]) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** As an Upload-Checksum header says it. */
export function checksum(data: Uint8Array): string {
  const crc = crc32c(data);
  return `crc32c ${btoa(String.fromCharCode(crc >>> 24, (crc >>> 16) & 255, (crc >>> 8) & 255, crc & 255))}`;
}
