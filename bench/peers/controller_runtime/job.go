package main

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/scheme"
)

var (
	groupVersion = schema.GroupVersion{Group: "bench.kaito.sh", Version: "v1"}
	builder      = (&scheme.Builder{GroupVersion: groupVersion}).Register(&Job{}, &JobList{})
)

// Job asks for one ConfigMap of its name that holds its text.
type Job struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   JobSpec   `json:"spec,omitempty"`
	Status JobStatus `json:"status,omitempty"`
}

// JobSpec is what the user wants.
type JobSpec struct {
	Text string `json:"text"`
}

// JobStatus is what there is.
type JobStatus struct {
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	Ready              bool  `json:"ready,omitempty"`
}

// JobList is what a list of Jobs answers.
type JobList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Job `json:"items"`
}

// DeepCopyInto is what controller-gen would write.
func (in *Job) DeepCopyInto(out *Job) {
	*out = *in
	in.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
}

// DeepCopy is what controller-gen would write.
func (in *Job) DeepCopy() *Job {
	out := new(Job)
	in.DeepCopyInto(out)
	return out
}

// DeepCopyObject is what controller-gen would write.
func (in *Job) DeepCopyObject() runtime.Object { return in.DeepCopy() }

// DeepCopyObject is what controller-gen would write.
func (in *JobList) DeepCopyObject() runtime.Object {
	out := new(JobList)
	*out = *in
	in.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = make([]Job, len(in.Items))
	for i := range in.Items {
		in.Items[i].DeepCopyInto(&out.Items[i])
	}
	return out
}
