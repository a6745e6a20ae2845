//! Matrix products through cuBLASLt.
//!
//! cuBLASLt expects column-major matrices. A row-major matrix is its transpose in column-major order, and
//! `D^T = op(B)^T op(A)^T`: the operands are swapped and nothing is moved.

use super::error::{DeviceError, driver, product};
use super::event::Event;
use super::kind::Kind;
use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::c_void;

/// A row-major matrix in an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Matrix {
    /// The address of its first number.
    pub pointer: u64,
    /// Its numbers' type.
    pub kind: Kind,
    /// Numbers between the starts of two stored rows.
    pub stride: usize,
    /// Whether the transpose of the matrix is stored. Operands only.
    pub transposed: bool,
}

impl Matrix {
    /// A matrix that begins `first` numbers after an address.
    pub(super) fn at(pointer: u64, first: usize, kind: Kind, stride: usize) -> Matrix {
        Matrix { pointer: pointer + (first * kind.bytes()) as u64, kind, stride, transposed: false }
    }

    /// The transpose.
    pub(super) fn transposed(self) -> Matrix {
        Matrix { transposed: !self.transposed, ..self }
    }
}

/// ```text
/// d[m, n] = alpha * a[m, k] * b[k, n] + beta * c[m, n]
/// ```
/// `a` and `b` have one type, `c` and `d` have one; f32 operands require f32 results. Sums are f32 (no TF32). `c` is
/// `d` if it is `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub alpha: f32,
    pub beta: f32,
    pub a: Matrix,
    pub b: Matrix,
    pub c: Option<Matrix>,
    pub d: Matrix,
}

/// Bytes of cuBLASLt's workspace.
const WORKSPACE: usize = 32 << 20;

/// Capacity of the plan cache, which is cleared when full.
const PLANS: usize = 8192;

/// Bytes written between two trials: more than the GPU's cache holds.
const FLUSHED: usize = 128 << 20;

/// Algorithms timed when products are tuned.
const TRIED: usize = 24;

/// Everything that the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 3],
    strides: [usize; 4],
    transposed: [bool; 2],
    kinds: [Kind; 2],
    /// Powers of two that divide the addresses.
    alignments: [u32; 4],
    in_place: bool,
    adds: bool,
}

/// cuBLASLt of one GPU.
pub(super) struct Products {
    handle: lt::cublasLtHandle_t,
    stream: sys::CUstream,
    workspace: u64,
    plans: HashMap<Key, Plan>,
    /// Whether several algorithms are timed for each new shape; the choice may then differ from run to run.
    pub(super) tunes: bool,
}

impl Products {
    pub(super) fn new(stream: sys::CUstream) -> Result<Products, DeviceError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer refers to a local.
        product("cublasLtCreate", unsafe { lt::cublasLtCreate(&mut handle) }, || "no product yet".into())?;
        let mut workspace = 0;
        // SAFETY: the pointer refers to a local.
        driver("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut workspace, WORKSPACE) })?;
        Ok(Products {
            handle,
            stream,
            workspace,
            plans: HashMap::new(),
            tunes: std::env::var("SALSA_CUDA_TUNE").is_ok_and(|value| value == "1"),
        })
    }

    /// Frees the handle and the workspace. Nothing is running, and the context is current.
    pub(super) fn close(&mut self) {
        self.plans.clear();
        // SAFETY: both are valid and not used afterwards.
        unsafe {
            let _ = lt::cublasLtDestroy(self.handle);
            let _ = sys::cuMemFree_v2(self.workspace);
        }
    }

    pub(super) fn run(&mut self, g: &Gemm) -> Result<(), DeviceError> {
        let key = Key::of(g);
        if !self.plans.contains_key(&key) {
            if self.plans.len() >= PLANS {
                self.plans.clear();
            }
            let mut plan = Plan::new(self.handle, g, &key, if self.tunes { TRIED } else { 1 })?;
            if plan.algorithms.len() > 1 {
                self.tune(&mut plan, g)?;
            }
            self.plans.insert(key, plan);
        }
        self.start(&self.plans[&key], 0, g, g.d.pointer)
    }

    /// Starts a product with one of the plan's algorithms.
    fn start(&self, plan: &Plan, algorithm: usize, g: &Gemm, d: u64) -> Result<(), DeviceError> {
        let c = if g.beta == 0.0 { d } else { g.c.map_or(d, |c| c.pointer) };
        // SAFETY: the descriptors are the plan's; the caller's arrays have these matrices; scalars are on the host (the
        // default pointer mode) and read before the call returns; the workspace has `WORKSPACE` bytes, and products
        // that use it are ordered on the stream.
        let status = unsafe {
            lt::cublasLtMatmul(
                self.handle,
                plan.operation,
                std::ptr::from_ref(&g.alpha).cast(),
                g.b.pointer as *const c_void,
                plan.layouts[0],
                g.a.pointer as *const c_void,
                plan.layouts[1],
                std::ptr::from_ref(&g.beta).cast(),
                c as *const c_void,
                plan.layouts[2],
                d as *mut c_void,
                plan.layouts[3],
                &plan.algorithms[algorithm],
                self.workspace as *mut c_void,
                WORKSPACE,
                self.stream.cast(),
            )
        };
        product("cublasLtMatmul", status, || g.describe())
    }

    /// Puts the fastest algorithm first. Results of the trials go to scratch memory.
    fn tune(&self, plan: &mut Plan, g: &Gemm) -> Result<(), DeviceError> {
        let bytes = (((g.m - 1) * g.d.stride + g.n) * g.d.kind.bytes()).next_multiple_of(256);
        let mut scratch = 0;
        // SAFETY: the pointer refers to a local.
        if unsafe { sys::cuMemAlloc_v2(&mut scratch, bytes + FLUSHED) } != sys::CUresult::CUDA_SUCCESS {
            plan.algorithms.truncate(1);
            return Ok(());
        }
        let mut best = (f32::INFINITY, 0);
        for algorithm in 0..plan.algorithms.len() {
            let events = [Event::new(true), Event::new(true)];
            let mut shortest = f32::INFINITY;
            for _ in 0..4 {
                // Flush the cache: in a model, operands come from memory.
                // SAFETY: the scratch has that many bytes after the result.
                let _ = unsafe { sys::cuMemsetD8Async(scratch + bytes as u64, 0, FLUSHED, self.stream) };
                events[0].record(self.stream);
                if self.start(plan, algorithm, g, scratch).is_err() {
                    break;
                }
                events[1].record(self.stream);
                events[1].wait();
                shortest = shortest.min(events[1].since(&events[0]));
            }
            if shortest < best.0 {
                best = (shortest, algorithm);
            }
        }
        // SAFETY: the memory was allocated above, and the work that uses it has ended.
        let _ = unsafe { sys::cuMemFree_v2(scratch) };
        plan.algorithms.swap(0, best.1);
        plan.algorithms.truncate(1);
        Ok(())
    }
}

impl Key {
    fn of(g: &Gemm) -> Key {
        let c = if g.beta == 0.0 { g.d } else { g.c.unwrap_or(g.d) };
        let alignment = |matrix: Matrix| 1 << matrix.pointer.trailing_zeros().min(8);
        Key {
            sizes: [g.m, g.n, g.k],
            strides: [g.a, g.b, c, g.d].map(|matrix| matrix.stride),
            transposed: [g.a.transposed, g.b.transposed],
            kinds: [g.a.kind, g.d.kind],
            alignments: [g.a, g.b, c, g.d].map(alignment),
            in_place: c.pointer == g.d.pointer,
            adds: g.beta != 0.0,
        }
    }
}

impl Gemm {
    /// Sizes, transposes and types, as the name of the product in profiles.
    pub(super) fn name(&self) -> String {
        let mark = |matrix: Matrix| if matrix.transposed { "^T" } else { "" };
        let (a, b) = (mark(self.a), mark(self.b));
        format!("product {}x{}x{} a{a} b{b} {:?} to {:?}", self.m, self.n, self.k, self.a.kind, self.d.kind)
    }

    pub(super) fn describe(&self) -> String {
        let operand = |name: &str, matrix: Matrix, rows: usize, columns: usize| {
            let mark = if matrix.transposed { "^T" } else { "" };
            let alignment = 1_u32 << matrix.pointer.trailing_zeros().min(8);
            format!("{name}{mark}[{rows}, {columns}] {:?} stride {} aligned to {alignment}", matrix.kind, matrix.stride)
        };
        format!(
            "{} = {} * {} * {} + {} * {}",
            operand("d", self.d, self.m, self.n),
            self.alpha,
            operand("a", self.a, self.m, self.k),
            operand("b", self.b, self.k, self.n),
            self.beta,
            operand("c", self.c.unwrap_or(self.d), self.m, self.n),
        )
    }

    /// Panics unless types and strides are valid.
    pub(super) fn check(&self) {
        let c = self.c.unwrap_or(self.d);
        let fits = |matrix: Matrix, rows: usize, columns: usize| {
            matrix.stride >= if matrix.transposed { rows } else { columns }
        };
        let sound = self.a.kind == self.b.kind
            && c.kind == self.d.kind
            && (self.a.kind == Kind::Bf16 || self.d.kind == Kind::F32)
            && !c.transposed
            && !self.d.transposed
            && fits(self.a, self.m, self.k)
            && fits(self.b, self.k, self.n)
            && fits(c, self.m, self.n)
            && fits(self.d, self.m, self.n);
        assert!(sound, "no such product: {}", self.describe());
    }
}

/// Descriptors of a product, and its algorithms, best first.
struct Plan {
    operation: lt::cublasLtMatmulDesc_t,
    /// Layouts in cuBLASLt's order: `b`, `a`, `c`, `d`.
    layouts: [lt::cublasLtMatrixLayout_t; 4],
    algorithms: Vec<lt::cublasLtMatmulAlgo_t>,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: only this plan owns the descriptors; those that were not created are null.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = lt::cublasLtMatrixLayoutDestroy(layout);
            }
            if !self.operation.is_null() {
                let _ = lt::cublasLtMatmulDescDestroy(self.operation);
            }
        }
    }
}

/// Constraints on the choice of an algorithm.
struct Preference(lt::cublasLtMatmulPreference_t);

impl Drop for Preference {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: only this value owns the preference.
            let _ = unsafe { lt::cublasLtMatmulPreferenceDestroy(self.0) };
        }
    }
}

impl Plan {
    fn new(handle: lt::cublasLtHandle_t, g: &Gemm, key: &Key, count: usize) -> Result<Plan, DeviceError> {
        let shape = || g.describe();
        let mut plan =
            Plan { operation: std::ptr::null_mut(), layouts: [std::ptr::null_mut(); 4], algorithms: Vec::new() };
        let compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: the pointer refers to the plan.
        let status =
            unsafe { lt::cublasLtMatmulDescCreate(&mut plan.operation, compute, lt::cudaDataType::CUDA_R_32F) };
        product("cublasLtMatmulDescCreate", status, shape)?;
        use lt::cublasLtMatmulDescAttributes_t as D;
        for (attribute, transposed) in
            [(D::CUBLASLT_MATMUL_DESC_TRANSA, g.b.transposed), (D::CUBLASLT_MATMUL_DESC_TRANSB, g.a.transposed)]
        {
            // CUBLAS_OP_T and CUBLAS_OP_N.
            let value = i32::from(transposed);
            let (value, size) = (std::ptr::from_ref(&value).cast(), size_of_val(&value));
            // SAFETY: the attribute is a value of this size.
            let status = unsafe { lt::cublasLtMatmulDescSetAttribute(plan.operation, attribute, value, size) };
            product("cublasLtMatmulDescSetAttribute", status, shape)?;
        }
        // Rows and columns in cuBLASLt's terms: stored rows are its columns.
        let stored = |matrix: Matrix, rows, columns| if matrix.transposed { (rows, columns) } else { (columns, rows) };
        let sizes = [stored(g.b, g.k, g.n), stored(g.a, g.m, g.k), (g.n, g.m), (g.n, g.m)];
        let [a, b, c, d] = key.strides;
        let kinds = [g.b.kind, g.a.kind, g.d.kind, g.d.kind];
        for (i, stride) in [b, a, c, d].into_iter().enumerate() {
            let kind = match kinds[i] {
                Kind::F32 => lt::cudaDataType::CUDA_R_32F,
                Kind::Bf16 => lt::cudaDataType::CUDA_R_16BF,
            };
            let (rows, columns) = sizes[i];
            // SAFETY: the pointer refers to the plan.
            let status = unsafe {
                let layout = &mut plan.layouts[i];
                lt::cublasLtMatrixLayoutCreate(layout, kind, rows as u64, columns as u64, stride as i64)
            };
            product("cublasLtMatrixLayoutCreate", status, shape)?;
        }
        plan.algorithms = plan.choose(handle, g, key, count)?;
        Ok(plan)
    }

    /// Algorithms that cuBLASLt proposes, best first.
    fn choose(
        &self,
        handle: lt::cublasLtHandle_t,
        g: &Gemm,
        key: &Key,
        count: usize,
    ) -> Result<Vec<lt::cublasLtMatmulAlgo_t>, DeviceError> {
        let shape = || g.describe();
        let mut preference = Preference(std::ptr::null_mut());
        // SAFETY: the pointer refers to a local.
        let status = unsafe { lt::cublasLtMatmulPreferenceCreate(&mut preference.0) };
        product("cublasLtMatmulPreferenceCreate", status, shape)?;
        use lt::cublasLtMatmulPreferenceAttributes_t as P;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the attribute is a value of this size, which lives through the call.
            let status = unsafe { lt::cublasLtMatmulPreferenceSetAttribute(preference.0, attribute, value, size) };
            product("cublasLtMatmulPreferenceSetAttribute", status, shape)
        };
        let bytes = std::ptr::from_ref(&WORKSPACE).cast();
        set(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes, size_of::<usize>())?;
        // Partial sums may be stored in the workspace as f32 and added in order. Adding to the result in place would
        // depend on which block comes first, and partial sums in the result's type would be rounded.
        let scheme = lt::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let scheme = std::ptr::from_ref(&scheme).cast();
        set(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme, size_of::<u32>())?;
        let [a, b, c, d] = key.alignments;
        for (attribute, alignment) in [
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
        ] {
            set(attribute, std::ptr::from_ref(&alignment).cast(), size_of::<u32>())?;
        }
        let mut found = [const { std::mem::MaybeUninit::<lt::cublasLtMatmulHeuristicResult_t>::zeroed() }; TRIED];
        let mut known = 0;
        let [b, a, c, d] = self.layouts;
        // SAFETY: the descriptors are alive; there is room for `count` results.
        let status = unsafe {
            let results = found.as_mut_ptr().cast();
            let count = count.min(found.len()) as i32;
            lt::cublasLtMatmulAlgoGetHeuristic(
                handle,
                self.operation,
                b,
                a,
                c,
                d,
                preference.0,
                count,
                results,
                &mut known,
            )
        };
        product("cublasLtMatmulAlgoGetHeuristic", status, shape)?;
        // SAFETY: as many results were written.
        let results = found[..known as usize].iter().map(|result| unsafe { result.assume_init() });
        let sound = |result: &lt::cublasLtMatmulHeuristicResult_t| {
            result.state == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= WORKSPACE
        };
        let algorithms: Vec<_> = results.filter(sound).map(|result| result.algo).collect();
        if algorithms.is_empty() {
            let error = "there is no algorithm for this product".into();
            return Err(DeviceError::Product { call: "cublasLtMatmulAlgoGetHeuristic".into(), error, shape: shape() });
        }
        Ok(algorithms)
    }
}
