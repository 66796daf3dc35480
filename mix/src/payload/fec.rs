//! The erasure code: N blocks made of K, any K of which give all back (E2E-spec 2.1.2).
//!
//! This is Luigi Rizzo's code, whose octets the specification leaves to his program: arithmetic in GF(256) with the
//! field polynomial 0x11D, a Vandermonde matrix for the points 0, 1, a, a², …, made systematic, so that the first K
//! blocks are the data. Reed-Solomon codes with the points 0, 1, 2, 3, … are others.

/// x⁸ + x⁴ + x³ + x² + 1, of which a = 2 is a primitive element.
const FIELD_POLYNOMIAL: u16 = 0x11D;

/// Non-zero elements of the field: the period of the powers of a.
const PERIOD: usize = 255;

/// Points that the field has, and so the largest N.
const POINTS: usize = 256;

/// Why blocks cannot be made or put together.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum FecError {
    /// K must be from 1 to N, and N at most 256.
    #[error("there is no erasure code with K = {k} and N = {n}")]
    Parameters {
        /// Blocks that are enough.
        k: usize,
        /// Blocks made.
        n: usize,
    },
    /// There are only N blocks.
    #[error("block {index} of {n}")]
    Index {
        /// Block asked for or received.
        index: usize,
        /// Blocks that there are.
        n: usize,
    },
    /// Encoding takes exactly K blocks, decoding at least K.
    #[error("{have} blocks; {need} are needed")]
    BlockCount {
        /// Blocks given.
        have: usize,
        /// K.
        need: usize,
    },
    /// All blocks have one length.
    #[error("blocks of unequal length")]
    UnequalBlocks,
    /// One block twice says nothing new.
    #[error("block {index} is given twice")]
    Repeated {
        /// The block.
        index: usize,
    },
}

/// The code for one K and N.
#[derive(Debug, PartialEq, Eq)]
pub struct ErasureCode {
    k: usize,
    /// N rows of K: what of each data block goes into each block made. The first K rows are the identity.
    matrix: Vec<Vec<u8>>,
}

impl ErasureCode {
    /// Computes the matrix; worth keeping.
    ///
    /// # Errors
    /// [`FecError::Parameters`].
    pub fn new(k: usize, n: usize) -> Result<Self, FecError> {
        if k == 0 || k > n || n > POINTS {
            return Err(FecError::Parameters { k, n });
        }
        let powers: Vec<Vec<u8>> =
            (0..n).map(|row| (0..k).map(|column| power_of_point(row, column)).collect()).collect();
        let to_data = inverse(&powers[..k]).expect("a Vandermonde matrix of distinct points");
        let matrix = powers.iter().map(|row| combine(row, &to_data)).collect();
        Ok(Self { k, matrix })
    }

    /// Blocks that are enough.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Blocks that can be made.
    pub fn n(&self) -> usize {
        self.matrix.len()
    }

    /// Makes block `index` of the K data blocks.
    ///
    /// # Errors
    /// [`FecError`].
    pub fn encode(&self, index: usize, data: &[&[u8]]) -> Result<Vec<u8>, FecError> {
        let factors = self.row(index)?;
        if data.len() != self.k {
            return Err(FecError::BlockCount { have: data.len(), need: self.k });
        }
        let len = common_len(data.iter().copied())?;
        let mut block = vec![0; len];
        sum_into(&mut block, factors, data);
        Ok(block)
    }

    /// Puts the K data blocks together, one after the other, from blocks with their indices. More than K do not help;
    /// the first K of them count.
    ///
    /// # Errors
    /// [`FecError`].
    pub fn decode(&self, received: &[(usize, &[u8])]) -> Result<Vec<u8>, FecError> {
        let received = received.get(..self.k).ok_or(FecError::BlockCount { have: received.len(), need: self.k })?;
        let len = common_len(received.iter().map(|(_, block)| *block))?;
        let mut rows = Vec::with_capacity(self.k);
        for (position, (index, _)) in received.iter().enumerate() {
            rows.push(self.row(*index)?.to_vec());
            if received.iter().take(position).any(|(earlier, _)| earlier == index) {
                return Err(FecError::Repeated { index: *index });
            }
        }
        let to_data = inverse(&rows).expect("any K rows are independent: their points are distinct");
        let blocks: Vec<&[u8]> = received.iter().map(|(_, block)| *block).collect();
        let mut data = vec![0; self.k * len];
        if len > 0 {
            data.chunks_exact_mut(len).zip(&to_data).for_each(|(block, factors)| sum_into(block, factors, &blocks));
        }
        Ok(data)
    }

    fn row(&self, index: usize) -> Result<&[u8], FecError> {
        self.matrix.get(index).map(Vec::as_slice).ok_or(FecError::Index { index, n: self.n() })
    }
}

fn common_len<'a>(mut blocks: impl Iterator<Item = &'a [u8]>) -> Result<usize, FecError> {
    let len = blocks.next().map_or(0, <[u8]>::len);
    if blocks.all(|block| block.len() == len) { Ok(len) } else { Err(FecError::UnequalBlocks) }
}

/// block += Σ factor × source. Most factors are 0 or 1, since most blocks arrive.
fn sum_into(block: &mut [u8], factors: &[u8], sources: &[&[u8]]) {
    for (factor, source) in factors.iter().zip(sources) {
        match factor {
            0 => {}
            1 => block.iter_mut().zip(*source).for_each(|(octet, source)| *octet ^= source),
            factor => {
                let products = multiples(*factor);
                block.iter_mut().zip(*source).for_each(|(octet, source)| *octet ^= products[usize::from(*source)]);
            }
        }
    }
}

/// row × matrix.
fn combine(row: &[u8], matrix: &[Vec<u8>]) -> Vec<u8> {
    let mut sum = vec![0; row.len()];
    let rows: Vec<&[u8]> = matrix.iter().map(Vec::as_slice).collect();
    sum_into(&mut sum, row, &rows);
    sum
}

/// Gauss and Jordan's way to the inverse of a square matrix; nothing when there is none.
fn inverse(matrix: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let size = matrix.len();
    let identity = |row: usize| (0..size).map(move |column| u8::from(row == column));
    let mut rows: Vec<Vec<u8>> =
        matrix.iter().enumerate().map(|(i, row)| row.iter().copied().chain(identity(i)).collect()).collect();
    for column in 0..size {
        let pivot = (column..size).find(|row| rows[*row][column] != 0)?;
        rows.swap(column, pivot);
        let scale = multiples(reciprocal(rows[column][column]));
        rows[column].iter_mut().for_each(|element| *element = scale[usize::from(*element)]);
        let pivot = rows[column].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(row, _)| *row != column) {
            let factor = row[column];
            sum_into(row, &[factor], &[&pivot]);
        }
    }
    Some(rows.into_iter().map(|mut row| row.split_off(size)).collect())
}

/// point^exponent, where the points are 0, a⁰, a¹, a², …
fn power_of_point(point: usize, exponent: usize) -> u8 {
    match (point, exponent) {
        (_, 0) => 1,
        (0, _) => 0,
        (point, exponent) => FIELD.exp[(point - 1) * exponent % PERIOD],
    }
}

fn multiples(factor: u8) -> [u8; POINTS] {
    let mut products = [0; POINTS];
    if factor != 0 {
        let log = usize::from(FIELD.log[usize::from(factor)]);
        for (product, other) in products.iter_mut().zip(&FIELD.log).skip(1) {
            *product = FIELD.exp[(log + usize::from(*other)) % PERIOD];
        }
    }
    products
}

/// 1 / element, for any but zero.
fn reciprocal(element: u8) -> u8 {
    FIELD.exp[(PERIOD - usize::from(FIELD.log[usize::from(element)])) % PERIOD]
}

/// Powers of a, and for each element but zero which power it is.
struct Field {
    exp: [u8; PERIOD],
    log: [u8; POINTS],
}

static FIELD: Field = field();

const fn field() -> Field {
    let mut field = Field { exp: [0; PERIOD], log: [0; POINTS] };
    let mut element: u16 = 1;
    let mut power = 0;
    while power < PERIOD {
        field.exp[power] = element as u8;
        field.log[element as usize] = power as u8;
        element <<= 1;
        if element & 0x100 != 0 {
            element ^= FIELD_POLYNOMIAL;
        }
        power += 1;
    }
    field
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ErasureCode, FecError, multiples, reciprocal};

    #[test]
    fn each_element_times_its_reciprocal_is_one() {
        for element in 1..=255 {
            assert_eq!(multiples(element)[usize::from(reciprocal(element))], 1);
        }
    }

    #[test]
    fn impossible_codes_are_refused() {
        for (k, n) in [(0, 0), (0, 3), (3, 2), (2, 257)] {
            assert_eq!(ErasureCode::new(k, n), Err(FecError::Parameters { k, n }));
        }
        assert!(ErasureCode::new(256, 256).is_ok());
    }

    #[test]
    fn wrong_blocks_are_refused_by_name() {
        let code = ErasureCode::new(2, 3).unwrap();
        let (a, b) = (&[1, 2][..], &[3, 4][..]);
        assert_eq!(code.encode(3, &[a, b]), Err(FecError::Index { index: 3, n: 3 }));
        assert_eq!(code.encode(0, &[a]), Err(FecError::BlockCount { have: 1, need: 2 }));
        assert_eq!(code.encode(0, &[a, &[3]]), Err(FecError::UnequalBlocks));
        assert_eq!(code.decode(&[(0, a)]), Err(FecError::BlockCount { have: 1, need: 2 }));
        assert_eq!(code.decode(&[(0, a), (3, b)]), Err(FecError::Index { index: 3, n: 3 }));
        assert_eq!(code.decode(&[(1, a), (1, b)]), Err(FecError::Repeated { index: 1 }));
        assert_eq!(code.decode(&[(1, a), (0, &[3])]), Err(FecError::UnequalBlocks));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_k_blocks_give_all_back(
            (k, n, data, order) in (1usize..=16, 0usize..=6).prop_flat_map(|(k, more)| (
                Just(k),
                Just(k + more),
                prop::collection::vec(any::<u8>(), k * 9),
                Just((0..k + more).collect::<Vec<_>>()).prop_shuffle(),
            ))
        ) {
            let code = ErasureCode::new(k, n).unwrap();
            let blocks: Vec<&[u8]> = data.chunks(9).collect();
            let made: Vec<Vec<u8>> = (0..n).map(|index| code.encode(index, &blocks).unwrap()).collect();
            let received: Vec<(usize, &[u8])> = order.iter().map(|index| (*index, &made[*index][..])).collect();
            prop_assert_eq!(code.decode(&received).unwrap(), data);
        }
    }
}
