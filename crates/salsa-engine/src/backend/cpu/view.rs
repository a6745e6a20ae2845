//! Matrices to read.

/// A read-only matrix anywhere in memory: element `(i, j)` is `data[i * row_stride + j * column_stride]`. One of the two
/// strides is 1.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows are `stride` apart.
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Self {
        View { data, row_stride: stride, column_stride: 1 }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        View { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}
