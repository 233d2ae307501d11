// A kernel that is a program in Rust: reads requests of refattn.testing, answers with o, the mean of v over all keys.
use std::collections::HashMap;
use std::io::{self, Read, Write};

struct Entry {
    dims: Vec<usize>,
    data: Vec<u8>,
}

impl Entry {
    fn floats(&self) -> Vec<f32> {
        self.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn read(input: &mut impl Read) -> io::Result<HashMap<String, Entry>> {
    let mut head = [0u8; 16];
    input.read_exact(&mut head)?; // the error at the end of the input ends the program
    assert!(&head[..4] == b"RFAT" && word(&head, 4) == 1);
    let mut entries = HashMap::new();
    for _ in 0..word(&head, 8) {
        let mut header = [0u8; 80];
        input.read_exact(&mut header)?;
        let name = String::from_utf8_lossy(&header[..16]).trim_end_matches('\0').to_string();
        let dims = (0..word(&header, 20) as usize).map(|n| long(&header, 24 + 8 * n)).collect();
        let nbytes = long(&header, 72);
        let mut data = vec![0u8; (nbytes + 7) / 8 * 8];
        input.read_exact(&mut data)?;
        data.truncate(nbytes);
        entries.insert(name, Entry { dims, data });
    }
    Ok(entries)
}

fn write(output: &mut impl Write, name: &str, dims: &[usize], values: &[f32]) -> io::Result<()> {
    let mut message = b"RFAT".to_vec();
    for number in [1u32, 1, 0] {
        message.extend(number.to_le_bytes()); // version, one entry, zero
    }
    let mut label = name.as_bytes().to_vec();
    label.resize(16, 0);
    message.extend(label);
    message.extend(1u32.to_le_bytes()); // float32
    message.extend((dims.len() as u32).to_le_bytes());
    for n in 0..6 {
        message.extend((*dims.get(n).unwrap_or(&0) as u64).to_le_bytes());
    }
    message.extend((4 * values.len() as u64).to_le_bytes());
    values.iter().for_each(|x| message.extend(x.to_le_bytes()));
    message.resize((message.len() + 7) / 8 * 8, 0);
    output.write_all(&message)?;
    output.flush()
}

fn main() {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    while let Ok(request) = read(&mut input) {
        let (q, k, v) = (&request["q"].dims, &request["k"].dims, &request["v"]);
        let (width, values) = (v.dims[3], v.floats());
        let mut o = Vec::new();
        for row in 0..q[0] * q[1] * q[2] {
            let (b, h) = (row / (q[1] * q[2]), row / q[2] % q[1]);
            let first = (b * k[1] + h / (q[1] / k[1])) * k[2]; // query head h reads key head h / (H / Hk)
            for c in 0..width {
                let sum: f32 = (0..k[2]).map(|j| values[(first + j) * width + c]).sum();
                o.push(sum / k[2] as f32);
            }
        }
        write(&mut output, "o", &[q[0], q[1], q[2], width], &o).unwrap();
    }
}
