/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fills a Maglev table: who takes the next turn, and which slot that turn gets.
 *
 * `construction.py` hashes names, apportions turns and owns every check of values; this file has the two
 * loops that are too slow in Python. It does no floating-point arithmetic and depends on no byte
 * order, so a table is the same on every machine. Built against the limited API of Python 3.11.
 */
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* Fraction bits of a turn's time. Times of weights below 2^16 differ by more than 2^-32 or not at
 * all, so rounding down keeps their order and their ties. construction.py bounds size and weights so that
 * a time fits 64 bits. */
#define TIME_BITS 40

#define RADIX_BITS 11
#define RADIX_MASK ((1u << RADIX_BITS) - 1)

struct turn {
	uint64_t time; /* (2k + 1) / weight for the backend's k-th turn, k from 0 */
	uint32_t owner;
};

struct input {
	const uint32_t *weight, *turns, *offset, *skip;
	uint32_t count, size;
};

struct scratch {
	struct turn *order, *other; /* one item per slot each */
	uint32_t *at;               /* each backend's place in its permutation */
	uint64_t *owned;            /* one bit per slot: a map that fits the first-level cache */
};

/* Every backend's turns, in the order of names. Returns the bits in which times differ from 0. */
static uint64_t list_turns(const struct input *in, struct turn *out)
{
	uint64_t bits = 0;

	for (uint32_t owner = 0; owner < in->count; owner++)
		for (uint64_t k = 0; k < in->turns[owner]; k++) {
			out->time = ((2 * k + 1) << TIME_BITS) / in->weight[owner];
			out->owner = owner;
			bits |= out++->time;
		}
	return bits;
}

/* One stable pass of a radix sort, by RADIX_BITS bits of the time from `shift` up. */
static void sort_pass(const struct turn *from, struct turn *to, uint32_t length, unsigned shift)
{
	uint32_t place[1 << RADIX_BITS] = {0}, sum = 0;

	for (uint32_t i = 0; i < length; i++)
		place[from[i].time >> shift & RADIX_MASK]++;
	for (uint32_t digit = 0; digit <= RADIX_MASK; digit++) {
		uint32_t here = place[digit];

		place[digit] = sum;
		sum += here;
	}
	for (uint32_t i = 0; i < length; i++)
		to[place[from[i].time >> shift & RADIX_MASK]++] = from[i];
}

/* All turns by time; the sort is stable, so that turns at one time stay in the order of names. */
static const struct turn *order_turns(const struct input *in, struct scratch *work)
{
	uint64_t bits = list_turns(in, work->order);

	for (unsigned shift = 0; shift < 64 && bits >> shift; shift += RADIX_BITS) {
		struct turn *sorted = work->other;

		sort_pass(work->order, sorted, in->size, shift);
		work->other = work->order;
		work->order = sorted;
	}
	return work->order;
}

/* Each turn takes the first slot of its backend's permutation that nobody owns yet. */
static void play(const struct input *in, struct scratch *work, uint32_t *table)
{
	const struct turn *order = order_turns(in, work);

	memcpy(work->at, in->offset, in->count * sizeof(*work->at));
	for (uint32_t i = 0; i < in->size; i++) {
		uint32_t owner = order[i].owner, slot = work->at[owner];

		while (work->owned[slot / 64] >> slot % 64 & 1) {
			slot += in->skip[owner]; /* both are below size, which is below 2^22 */
			slot -= slot < in->size ? 0 : in->size;
		}
		work->owned[slot / 64] |= UINT64_C(1) << slot % 64;
		table[slot] = owner;
		work->at[owner] = slot;
	}
}

/* What would make play() read outside an array, divide by zero or search for ever. */
static const char *fault(const struct input *in)
{
	uint64_t sum = 0;

	if (in->size < 2 || in->size >= 1u << 22)
		return "the table's size is out of range";
	for (uint32_t i = 0; i < in->count; i++) {
		sum += in->turns[i];
		if (in->turns[i] && (!in->weight[i] || in->weight[i] > UINT16_MAX))
			return "a weight is out of range";
		if (in->offset[i] >= in->size || !in->skip[i] || in->skip[i] >= in->size)
			return "an offset or a skip is out of range";
	}
	return sum == in->size ? NULL : "there must be one turn for each slot";
}

static PyObject *run(const struct input *in, uint32_t *table)
{
	const char *why = fault(in);
	struct turn *turns;
	struct scratch work;

	if (why) {
		PyErr_SetString(PyExc_ValueError, why);
		return NULL;
	}
	turns = PyMem_Calloc(2 * (size_t)in->size, sizeof(*turns));
	work.at = PyMem_Calloc(in->count, sizeof(*work.at));
	work.owned = PyMem_Calloc(in->size / 64 + 1, sizeof(*work.owned));
	if (turns && work.at && work.owned) {
		work.order = turns;
		work.other = turns + in->size;
		Py_BEGIN_ALLOW_THREADS
		play(in, &work, table);
		Py_END_ALLOW_THREADS
	} else {
		PyErr_NoMemory();
	}
	PyMem_Free(turns);
	PyMem_Free(work.at);
	PyMem_Free(work.owned);
	return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(fill_doc,
"fill(table, weight, turns, offset, skip, /)\n--\n\n"
"Fill a Maglev table in place.\n\n"
"All arguments are contiguous buffers of native uint32. `table` has one item per slot and its\n"
"length is prime; the others have one item per backend, in the order of names. The sum of `turns`\n"
"is the number of slots. Raises ValueError if the arguments do not fit together.");

static PyObject *fill(PyObject *module, PyObject *args)
{
	Py_buffer view[5];
	PyObject *object[5], *result = NULL;
	int got = 0;

	(void)module;
	if (!PyArg_ParseTuple(args, "OOOOO:fill", object, object + 1, object + 2, object + 3, object + 4))
		return NULL;
	for (; got < 5; got++) {
		int flags = PyBUF_C_CONTIGUOUS | (got ? 0 : PyBUF_WRITABLE);

		if (PyObject_GetBuffer(object[got], &view[got], flags) < 0)
			goto release;
		if (view[got].itemsize != sizeof(uint32_t) || view[got].len / 4 > UINT32_MAX ||
		    (got > 1 && view[got].len != view[1].len)) {
			PyErr_SetString(PyExc_ValueError, "wants uint32 buffers of matching lengths");
			got++;
			goto release;
		}
	}
	result = run(&(struct input){
			.weight = view[1].buf, .turns = view[2].buf,
			.offset = view[3].buf, .skip = view[4].buf,
			.count = (uint32_t)(view[1].len / 4), .size = (uint32_t)(view[0].len / 4),
		}, view[0].buf);
release:
	while (got-- > 0)
		PyBuffer_Release(&view[got]);
	return result;
}

static PyMethodDef methods[] = {
	{"fill", fill, METH_VARARGS, fill_doc},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "tidegate.maglev._maglev",
	.m_doc = "The inner loops of Maglev table construction.",
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__maglev(void)
{
	return PyModuleDef_Init(&definition);
}
