//! A state dict as `torch.save` writes it: a zip of `data.pkl` and one file of raw bytes per tensor.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::tensors::{Dtype, Noise, Tensor};

/// Writes `tensors` to one file.
pub fn write(path: &Path, tensors: &[Tensor], dtype: Dtype) {
    let mut noise = Noise::new(dtype);
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (at, tensor) in tensors.iter().enumerate() {
        pickle.extend(described(tensor, dtype, at));
    }
    pickle.extend(b"u.");
    zip.start_file("pytorch_model/data.pkl", stored).unwrap();
    zip.write_all(&pickle).unwrap();
    for (at, tensor) in tensors.iter().enumerate() {
        zip.start_file(format!("pytorch_model/data/{at}"), stored).unwrap();
        noise.write(tensor, &mut zip);
    }
    zip.finish().unwrap();
}

/// Name and `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.
fn described(tensor: &Tensor, dtype: Dtype, storage: usize) -> Vec<u8> {
    let text = |s: &str| [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat();
    let int = |i: usize| [b"J", &i32::try_from(i).unwrap().to_le_bytes()[..]].concat();
    let tuple = |items: Vec<Vec<u8>>| [b"(".to_vec(), items.concat(), b"t".to_vec()].concat();
    let class = match dtype {
        Dtype::F16 => b"ctorch\nHalfStorage\n".to_vec(),
        Dtype::Bf16 => b"ctorch\nBFloat16Storage\n".to_vec(),
    };
    let place = [class, text(&storage.to_string()), text("cpu"), int(tensor.len())].concat();
    let strides = match tensor.shape[..] {
        [_, columns] => vec![int(columns), int(1)],
        _ => vec![int(1)],
    };
    let arguments = tuple(vec![
        [tuple(vec![text("storage"), place]), b"Q".to_vec()].concat(),
        int(0),
        tuple(tensor.shape.iter().map(|&size| int(size)).collect()),
        tuple(strides),
        b"\x89ccollections\nOrderedDict\n)R".to_vec(),
    ]);
    [text(&tensor.name), b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), arguments, b"R".to_vec()].concat()
}
