/* Copies for memory that is not read again soon: the target bypasses the caches.
 *
 * An ordinary store to memory first fetches the line that it is about to overwrite. Beyond the
 * size of the caches that is a third of the traffic; non-temporal stores leave it out.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* the first stable ABI with the buffer protocol */
#include <Python.h>

#include <stdint.h>
#include <string.h>

#ifndef __SSE2__
#error "without non-temporal stores dvrt copies as NumPy does"
#endif
#include <emmintrin.h>

enum { LINE = 64, AHEAD = 16 * LINE };

static void copy_past_caches(char *target, const char *source, size_t size)
{
    size_t head = -(uintptr_t)target % LINE;
    if (head > size)
        head = size;
    memcpy(target, source, head);
    target += head, source += head, size -= head;

    for (; size >= LINE; target += LINE, source += LINE, size -= LINE) {
        const __m128i *from = (const __m128i *)source;
        __m128i *to = (__m128i *)target;
        _mm_prefetch(source + AHEAD, _MM_HINT_T0);
        __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
        __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
        _mm_stream_si128(to, a);
        _mm_stream_si128(to + 1, b);
        _mm_stream_si128(to + 2, c);
        _mm_stream_si128(to + 3, d);
    }
    _mm_sfence(); /* whoever is told of these bytes next finds them */
    memcpy(target, source, size);
}

enum { RELEASED = 1 << 20 }; /* for less, letting others run costs more than it gives */

static PyObject *copy(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer target, source;
    if (!PyArg_ParseTuple(args, "w*y*:copy", &target, &source))
        return NULL;
    int fits = target.len == source.len;
    if (fits) {
        PyThreadState *state = source.len >= RELEASED ? PyEval_SaveThread() : NULL;
        copy_past_caches(target.buf, source.buf, (size_t)source.len);
        if (state)
            PyEval_RestoreThread(state);
    } else {
        PyErr_Format(PyExc_ValueError, "%zd bytes into %zd", source.len, target.len);
    }
    PyBuffer_Release(&source);
    PyBuffer_Release(&target);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"copy", copy, METH_VARARGS,
     "copy(target, source)\n--\n\nFill target with source, past the caches; they must not overlap. "
     "Other threads run\nwhile it is long. Raises ValueError when their sizes differ."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_streaming_copy",
    .m_doc = "Copies that bypass the caches.",
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__streaming_copy(void)
{
    return PyModule_Create(&definition);
}
