#include "src/command.h"

int main(int argc, char** argv) { return orpo::run_program(argc, argv); }
