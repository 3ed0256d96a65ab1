// SPDX-License-Identifier: Apache-2.0

// Package waiting is how a store waits without end and still can be asked and
// stopped: a Reason says why an activity does not get on, a Life ends all of
// them at once, and Pause is the only way to let time pass.
package waiting
