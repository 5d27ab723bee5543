//! Unfolds the inputs of convolutions into rows of patches while they are read.

use super::Part;
use crate::storage::{Problem, Source};
use serde::Deserialize;

/// A convolution in the metadata of a file. It determines how images `[images, channels, space…]` become rows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Convolution {
    kernel: Vec<u64>,
    stride: Vec<u64>,
    padding: Vec<u64>,
    #[serde(default)]
    dilation: Vec<u64>,
    groups: Option<u64>,
}

/// Maximum size of an image, in numbers. One image is read at a time.
const LARGEST_IMAGE: u64 = 1 << 28;

/// The unfolding of the images in a tensor into patches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unfolding {
    channels: usize,
    /// For each axis of space: input size, kernel, stride, padding, and number of patches.
    axes: Vec<Axis>,
    /// Number of groups of the convolution, if the metadata has it. Patches contain the channels of all groups.
    pub(super) groups: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Axis {
    size: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    patches: usize,
}

impl Convolution {
    /// Refuses invalid convolutions, and those that PEFT cannot adapt.
    pub(super) fn check(&self) -> Result<(), Problem> {
        if self.dilation.iter().any(|&dilation| dilation != 1) {
            return Err(Problem::data(format!("convolutions with dilation {:?} are not supported", self.dilation)).help(
                "PEFT would adapt such a layer without the dilation, which is wrong: remove it from the recording",
            ));
        }
        let axes = self.kernel.len();
        let complete = [&self.stride, &self.padding].iter().all(|numbers| numbers.len() == axes);
        let positive = self.kernel.iter().chain(&self.stride).all(|&number| number > 0);
        if !(1..=3).contains(&axes) || !complete || !positive {
            return Err(Problem::data(format!(
                "expected kernel, stride and padding of a convolution, one number for each of 1 to 3 axes, found {:?}, {:?} \
                 and {:?}",
                self.kernel, self.stride, self.padding
            )));
        }
        Ok(())
    }

    /// The number of images in a tensor of this shape, and its unfolding.
    pub(super) fn unfolding(&self, shape: &[u64]) -> Result<(u64, Unfolding), Problem> {
        let expected = || {
            let found =
                format!("expected [images, channels, {} axes of space], found {shape:?}", self.kernel.len());
            Problem::data(found).help(
                "record the input of the convolution unchanged, or unfolded patches without a metadata entry",
            )
        };
        let [images, channels, space @ ..] = shape else { return Err(expected()) };
        let numbers = space.iter().try_fold(*channels, |product, &size| product.checked_mul(size));
        let small = |number: &u64| usize::try_from(*number).ok().filter(|_| *number <= LARGEST_IMAGE);
        if space.len() != self.kernel.len() || numbers.is_none_or(|n| n == 0 || n > LARGEST_IMAGE) {
            return Err(expected());
        }
        let axes: Option<Vec<Axis>> = (0..space.len())
            .map(|axis| {
                let (size, kernel) = (small(&space[axis])?, small(&self.kernel[axis])?);
                let (stride, padding) = (small(&self.stride[axis])?, small(&self.padding[axis])?);
                let patches = (size + 2 * padding).checked_sub(kernel)? / stride + 1;
                Some(Axis { size, kernel, stride, padding, patches })
            })
            .collect();
        let axes = axes.ok_or_else(expected)?;
        let channels = small(channels).ok_or_else(expected)?;
        if let Some(groups) = self.groups
            && (groups == 0 || !(channels as u64).is_multiple_of(groups))
        {
            return Err(Problem::data(format!(
                "expected a number of groups that divides the {channels} channels, found {groups}"
            )));
        }
        Ok((*images, Unfolding { channels, axes, groups: self.groups }))
    }
}

impl Unfolding {
    /// One number for each axis of space.
    pub(super) fn kernel(&self) -> Vec<u64> {
        self.axes.iter().map(|axis| axis.kernel as u64).collect()
    }

    /// Numbers in a patch. `None` on overflow.
    pub(super) fn width(&self) -> Option<usize> {
        self.axes.iter().try_fold(self.channels, |product, axis| product.checked_mul(axis.kernel))
    }

    /// Patches of an image. `None` on overflow.
    pub(super) fn patches(&self) -> Option<u64> {
        self.axes.iter().try_fold(1_u64, |product, axis| product.checked_mul(axis.patches as u64))
    }

    /// Numbers in an image.
    pub(super) fn image(&self) -> usize {
        self.channels * self.axes.iter().map(|axis| axis.size).product::<usize>()
    }

    /// Writes patch `number` of an image, `[channels, kernel…]` in C order, with numbers of `size` bytes. The padding is zero.
    fn patch(&self, image: &[u8], size: usize, number: usize, out: &mut [u8]) {
        let mut place = vec![0; self.axes.len()];
        let mut rest = number;
        for (place, axis) in place.iter_mut().zip(&self.axes).rev() {
            *place = rest % axis.patches * axis.stride;
            rest /= axis.patches;
        }
        let kernel: usize = self.axes.iter().map(|axis| axis.kernel).product();
        for (entry, out) in out.chunks_exact_mut(size).enumerate() {
            match self.source(entry / kernel, entry % kernel, &place) {
                Some(from) => out.copy_from_slice(&image[from * size..][..size]),
                None => out.fill(0),
            }
        }
    }

    /// The index in the image of one entry of the kernel at this place. `None` in the padding.
    fn source(&self, channel: usize, entry: usize, place: &[usize]) -> Option<usize> {
        let mut rest = entry;
        let (mut from, mut unit) = (0, 1);
        for (axis, place) in self.axes.iter().zip(place).rev() {
            let at = (place + rest % axis.kernel).checked_sub(axis.padding).filter(|at| *at < axis.size)?;
            from += at * unit;
            unit *= axis.size;
            rest /= axis.kernel;
        }
        Some(channel * unit + from)
    }

    /// Reads patches of a part, from patch number `first`. `image` is a buffer for one image.
    pub(super) fn read(
        &self,
        part: &Part,
        source: &Source,
        first: u64,
        image: &mut [u8],
        out: &mut [u8],
    ) -> Result<(), Problem> {
        let size = part.element.size();
        let (Some(width), Some(patches)) = (self.width(), self.patches()) else { return Ok(()) };
        let mut read = None;
        for (row, out) in (first..).zip(out.chunks_exact_mut(width * size)) {
            let number = row / patches;
            if read != Some(number) {
                source.read(image, part.offset + number * image.len() as u64)?;
                read = Some(number);
            }
            self.patch(image, size, (row % patches) as usize, out);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Problems;
    use crate::storage::shown;
    use expect_test::expect;
    use std::path::Path;

    fn convolution(kernel: &[u64], stride: &[u64], padding: &[u64]) -> Convolution {
        let [kernel, stride, padding] = [kernel, stride, padding].map(<[u64]>::to_vec);
        Convolution { kernel, stride, padding, dilation: vec![], groups: None }
    }

    /// The patches of an image of one-byte numbers.
    fn patches(convolution: &Convolution, shape: &[u64], image: &[u8]) -> Vec<Vec<u8>> {
        let (_, unfolding) = convolution.unfolding(shape).unwrap();
        let patch = |number| {
            let mut out = vec![9; unfolding.width().unwrap()];
            unfolding.patch(image, 1, number, &mut out);
            out
        };
        (0..unfolding.patches().unwrap() as usize).map(patch).collect()
    }

    /// Stride and padding along one axis, two channels.
    #[test]
    fn patches_of_a_line() {
        let found = patches(&convolution(&[3], &[2], &[1]), &[1, 2, 4], &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(found, [[0, 1, 2, 0, 5, 6], [2, 3, 4, 6, 7, 8]]);
    }

    /// The axes have different kernels, strides and paddings. Rows come before columns, as in the weight.
    #[test]
    fn patches_of_an_image() {
        let image: Vec<u8> = (1..=12).collect();
        let found = patches(&convolution(&[2, 1], &[1, 2], &[0, 1]), &[1, 1, 3, 4], &image);
        assert_eq!(found, [[0, 0], [2, 6], [4, 8], [0, 0], [6, 10], [8, 12]]);
    }

    /// Patches contain all channels, also with groups.
    #[test]
    fn groups_do_not_change_patches() {
        let grouped = Convolution { groups: Some(2), ..convolution(&[3], &[2], &[1]) };
        let image = [1, 2, 3, 4, 5, 6, 7, 8];
        let alone = patches(&convolution(&[3], &[2], &[1]), &[1, 2, 4], &image);
        assert!(grouped.check().is_ok());
        assert_eq!(patches(&grouped, &[1, 2, 4], &image), alone);
    }

    /// The reference is a loop over all places with explicit padding.
    #[test]
    fn patches_of_a_padded_square() {
        let image: Vec<u8> = (1..=25).collect();
        let found = patches(&convolution(&[3, 3], &[2, 2], &[1, 1]), &[1, 1, 5, 5], &image);
        let padded = |i: usize, j: usize| match (i, j) {
            (1..=5, 1..=5) => image[(i - 1) * 5 + j - 1],
            _ => 0,
        };
        let expected: Vec<Vec<u8>> =
            (0..9).map(|n| (0..9).map(|k| padded(n / 3 * 2 + k / 3, n % 3 * 2 + k % 3)).collect()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn unsupported_convolutions_are_refused() {
        let mut dilated = convolution(&[3], &[1], &[0]);
        dilated.dilation = vec![2];
        expect![[r#"
            Data: convolutions with dilation [2] are not supported
                help: PEFT would adapt such a layer without the dilation, which is wrong: remove it from the recording
        "#]].assert_eq(&shown(&dilated.check().unwrap_err().into(), Path::new("-")));
        let mut problems = Problems::default();
        for groups in [0, 2] {
            let grouped = Convolution { groups: Some(groups), ..convolution(&[3], &[1], &[0]) };
            problems.push(grouped.check().and_then(|()| grouped.unfolding(&[2, 3, 4])).unwrap_err());
        }
        for (kernel, stride) in [(vec![], vec![]), (vec![3], vec![1, 1]), (vec![0], vec![1])] {
            problems.push(convolution(&kernel, &stride, &vec![0; kernel.len()]).check().unwrap_err());
        }
        for shape in [&[2, 3][..], &[2, 3, 4, 5], &[2, 0, 4], &[2, 3, 2], &[2, u64::MAX, u64::MAX]] {
            problems.push(convolution(&[3], &[1], &[0]).unfolding(shape).unwrap_err());
        }
        expect![[r#"
            Data: expected a number of groups that divides the 3 channels, found 0
            Data: expected a number of groups that divides the 3 channels, found 2
            Data: expected kernel, stride and padding of a convolution, one number for each of 1 to 3 axes, found [], [] and []
            Data: expected kernel, stride and padding of a convolution, one number for each of 1 to 3 axes, found [3], [1, 1] and [0]
            Data: expected kernel, stride and padding of a convolution, one number for each of 1 to 3 axes, found [0], [1] and [0]
            Data: expected [images, channels, 1 axes of space], found [2, 3]
                help: record the input of the convolution unchanged, or unfolded patches without a metadata entry
            Data: expected [images, channels, 1 axes of space], found [2, 3, 4, 5]
                help: record the input of the convolution unchanged, or unfolded patches without a metadata entry
            Data: expected [images, channels, 1 axes of space], found [2, 0, 4]
                help: record the input of the convolution unchanged, or unfolded patches without a metadata entry
            Data: expected [images, channels, 1 axes of space], found [2, 3, 2]
                help: record the input of the convolution unchanged, or unfolded patches without a metadata entry
            Data: expected [images, channels, 1 axes of space], found [2, 18446744073709551615, 18446744073709551615]
                help: record the input of the convolution unchanged, or unfolded patches without a metadata entry
        "#]].assert_eq(&shown(&problems, Path::new("-")));
    }
}
