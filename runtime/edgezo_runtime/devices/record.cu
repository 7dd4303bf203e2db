// Numbers of one step, in double precision: what its record holds, or what its update takes.
//
// `formula` is the program's, written by cuda_record.py; CELLS, NUMBERS and OUTPUTS are given.

#define ROOM(count) ((count) > 0 ? (count) : 1)
#define LARGEST 3.402823466e38f  // float32

struct Given {
    const double* cells[ROOM(CELLS)];
    double numbers[ROOM(NUMBERS)];
};

// Fills a sheet: 0, or 1 where an output is of no use; the outputs as float32 has them; the cells.
extern "C" __global__ void compute(const Given* given, float lr, float most, double* sheet) {
    double* found = sheet + 1;
    formula(given->cells, given->numbers, found);
    bool usable = true;
    for (u32 i = 0; i < OUTPUTS; ++i) {
        const float rounded = narrow(found[i]);
        usable = usable && at_most(size_of(mul(rounded, lr)), LARGEST)
                 && at_most(size_of(rounded), most);
        found[i] = widen(rounded);
    }
    for (u32 i = 0; i < CELLS; ++i) found[OUTPUTS + i] = *given->cells[i];
    sheet[0] = usable ? 0.0 : 1.0;
}
