/* The parser's own: one head that reads a clean text, without a token list, since what a digit
 * belongs to depends on who asks (\frac12). */
#ifndef IFL_REWARDS_MATH_PARSE_H
#define IFL_REWARDS_MATH_PARSE_H

#include "rewards/math/tree.h"

typedef struct ifl_math_head {
    ifl_math_work *work;
    const char *text;
    size_t n, at;
    size_t solid; /* one more than where no space begins, as found last */
    int depth;
    int in_bars;  /* inside |...|, where a bar closes */
    int in_group; /* inside brackets, where a comma separates */
    int in_matrix;
    ifl_math_reading reading;
    const char *reason; /* why it isn't mathematics; static text */
} ifl_math_head;

/* NULL, with the reason kept if it is the first. */
ifl_math_node *ifl_math_refuse(ifl_math_head *p, const char *reason);

/* --- parse_text.c */
bool ifl_math_is_digit(int c);
bool ifl_math_is_letter(int c); /* ASCII, or a byte of anything beyond */
int ifl_math_peek(const ifl_math_head *p, size_t ahead);
bool ifl_math_at(const ifl_math_head *p, const char *word);
bool ifl_math_accept(ifl_math_head *p, const char *word); /* skips space before it */
void ifl_math_skip_space(ifl_math_head *p);
/* The name of the command at the head, without the backslash: its length, 0 when there is none. */
size_t ifl_math_command(const ifl_math_head *p);
bool ifl_math_command_is(const ifl_math_head *p, const char *name);
bool ifl_math_accept_command(ifl_math_head *p, const char *name);
size_t ifl_math_word(const ifl_math_head *p); /* letters at the head */
/* Behind "{": the content up to its "}", which is passed. */
bool ifl_math_braced(ifl_math_head *p, ifl_slice *out);
ifl_math_node *ifl_math_read_number(ifl_math_head *p);
ifl_math_node *ifl_math_read_digit(ifl_math_head *p); /* one, as behind \frac */
/* Behind an expression: a unit, "" when there is none; NULL when there is no room. */
const char *ifl_math_read_unit(ifl_math_head *p, bool plain);
/* Text in words at the head: its length without what follows, 0 when there is none. */
ifl_math_node *ifl_math_read_words(ifl_math_head *p);

/* --- parse_atom.c */
ifl_math_node *ifl_math_read_atom(ifl_math_head *p);
bool ifl_math_atom_begins(ifl_math_head *p);

/* --- parse_environment.c */
ifl_math_node *ifl_math_read_environment(ifl_math_head *p); /* behind "\begin" */

/* --- parse.c */
ifl_math_node *ifl_math_read_list(ifl_math_head *p);    /* a, b and c */
ifl_math_node *ifl_math_read_sum(ifl_math_head *p);     /* a + b */
ifl_math_node *ifl_math_read_postfix(ifl_math_head *p); /* a^2! */
ifl_math_node *ifl_math_read_factors(ifl_math_head *p); /* 2 x, as behind \sin */
bool ifl_math_enter(ifl_math_head *p);                  /* false: too deep; else p->depth-- */

#endif
